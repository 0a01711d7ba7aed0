#!/usr/bin/env python3
"""Own adapters against their merges, without a federation: a table for one rank, rate, method.

usage: tools/merge_study.py --backbone DIR --data DIR --tasks a,b,c --merges SPEC,SPEC...
                            [--out DIR] [--isofed PROGRAM] [-- options of isofed train]

Trains one adapter a task (kept in OUT, so that a second study finds them), merges them, and scores
each merge on every task's test images as delivered (with the head the adapter was trained against)
and with the head refitted on the task's training images.
SPEC is method:alpha or method:alpha:name=value, as in iso_cts:1.5:common_fraction=0.5.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys


def main():
    own_args, train_args = sys.argv[1:], []
    if "--" in own_args:
        cut = own_args.index("--")
        own_args, train_args = own_args[:cut], own_args[cut + 1:]
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("backbone", "data", "tasks", "merges"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--out", default="study")
    parser.add_argument("--isofed", default="isofed")
    o = parser.parse_args(own_args)
    tasks = o.tasks.split(",")

    def isofed(*args):
        r = subprocess.run([o.isofed, *args], capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"isofed {args[0]}: {r.stderr.strip()}")
        return r.stdout

    def score(task, adapter=None, head=None):
        args = ["eval", "--backbone", o.backbone, "--data", f"{o.data}/{task}", "--refit", "--json",
                "-q"]
        args += ["--adapter", adapter] if adapter else []
        args += ["--head", head] if head else []
        j = json.loads(isofed(*args))
        return (j["delivered"]["accuracy"] if head else None), j["refit"]["accuracy"]

    adapters, heads, probe, own = [], {}, {}, {}
    for t in tasks:
        folder = f"{o.out}/{t}"
        if not os.path.exists(f"{folder}/head.safetensors"):
            isofed("train", "--backbone", o.backbone, "--data", f"{o.data}/{t}", "-o", folder, "-q",
                   *train_args)
        adapters.append(folder)
        heads[t] = f"{folder}/head.safetensors"
        probe[t] = (score(t, None, heads[t])[0], score(t)[1])
        own[t] = score(t, folder, heads[t])

    def line(cells):
        print("| " + " | ".join(cells) + " |", flush=True)

    def pair(p):
        return f"{100 * p[0]:.1f} / {100 * p[1]:.1f}"

    line(["merge"] + tasks + ["normalised", "gain kept"])
    line(["---"] * (len(tasks) + 3))
    line(["probe"] + [pair(probe[t]) for t in tasks] + ["", ""])
    line(["own"] + [pair(own[t]) for t in tasks] + ["", ""])
    for spec in o.merges.split(","):
        method, alpha, *rest = spec.split(":")
        args = ["--alpha", alpha] if method != "average" else []
        for setting in rest:
            args += ["--set", setting]
        out = f"{o.out}/merge-{spec.replace(':', '-')}"
        subprocess.run(["rm", "-rf", out], check=True)
        isofed("merge", *adapters, "-m", method, *args, "-o", out, "-q")
        got = {t: score(t, out, heads[t]) for t in tasks}
        kept = [statistics.fmean((got[t][k] - probe[t][k]) / (own[t][k] - probe[t][k])
                                 for t in tasks if own[t][k] - probe[t][k] >= 0.02)
                for k in (0, 1)]
        normal = [statistics.fmean(got[t][k] / own[t][k] for t in tasks) for k in (0, 1)]
        line([spec] + [pair(got[t]) for t in tasks] + [pair(normal), pair(kept)])


if __name__ == "__main__":
    main()
