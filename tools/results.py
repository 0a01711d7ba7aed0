#!/usr/bin/env python3
"""Tables for docs/RESULTS.md from the summaries of several demo runs.

usage: tools/results.py OUT/summary.json...

One run a seed, the same tasks in each. Prints Markdown: a row a task, then what the methods keep;
mean over the runs, and the spread (sample standard deviation) where there are several.
"""
import json
import math
import statistics
import sys


def text(values, scale=100.0, signed=False):
    known = [scale * v for v in values if v is not None and not math.isnan(v)]
    if not known:
        return "–"
    mean = statistics.fmean(known)
    out = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return out + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def row(cells):
    print("| " + " | ".join(cells) + " |")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.strip())
    runs = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            runs.append(json.load(file))
    names = [t["name"] for t in runs[0]["tasks"]]
    methods = list(runs[0]["mean_normalised"])
    for path, run in zip(sys.argv[1:], runs):
        if [t["name"] for t in run["tasks"]] != names or list(run["mean_normalised"]) != methods:
            sys.exit(f"{path}: other tasks or methods than {sys.argv[1]}")

    row(["task", "chance", "probe", "own"] + methods)
    row(["---"] * (4 + len(methods)))
    for i, name in enumerate(names):
        tasks = [run["tasks"][i] for run in runs]
        pair = lambda a, b: f"{text(a)} / {text(b)}"
        row([name, text([tasks[0]["chance"]]),
             pair([t["probe_delivered"] for t in tasks], [t["probe"] for t in tasks]),
             pair([t["own_delivered"] for t in tasks], [t["own"] for t in tasks])]
            + [pair([t["merged"][m]["delivered"] for t in tasks],
                    [t["merged"][m]["refit"] for t in tasks]) for m in methods])
    print()
    row(["method", "alpha: delivered", "refitted", "normalised: delivered", "refitted",
         "gain kept: delivered", "refitted"])
    row(["---"] * 7)
    for m in methods:
        row([m] + [", ".join(f"{run[key][m]:g}" for run in runs)
                   for key in ("alpha_delivered", "alpha")]
            + [text([run[key].get(m) for run in runs]) for key in
               ("mean_normalised_delivered", "mean_normalised", "mean_gain_kept_delivered",
                "mean_gain_kept")])
    print()
    sent = [s["sent_bytes"] / 2**20 for run in runs for s in run["sites"]]
    print(f"Forgetting after wave 2: {text([run['forgetting'] for run in runs])} points; backward "
          f"transfer {text([run['backward_transfer'] for run in runs], signed=True)}; "
          f"{min(sent):.1f} to {max(sent):.1f} MiB sent a site; "
          f"{text([run['seconds'] for run in runs], 1)} s a run.")


if __name__ == "__main__":
    main()
