#!/bin/bash
# A checkpoint of the shape of seven billion parameters (bfloat16, three shards with an index), four
# times, sparse on disk; merged within 2 GiB (specs/users.md U94, DESIGN 9). Not part of ctest.
#   bench/merge_7b.sh ISOFED FOLDER [method [layers]]
# FOLDER needs 14 GB for the result. Prints the kernel's peak of memory, the time, and beside it the
# time of reading the inputs and writing as many bytes (dd). Fewer layers for dense Iso-C: the dry
# run projects the whole.
set -euo pipefail
isofed=$1
folder=$2
method=${3:-average}
layers=${4:-32}
mkdir -p "$folder"

python3 - "$folder" "$layers" <<'PY'
import json, os, struct, sys
folder, layers = sys.argv[1], int(sys.argv[2])
D, F, V = 4096, 11008, 32000
tensors = [("model.embed_tokens.weight", [V, D])]
for i in range(layers):
    p = f"model.layers.{i}."
    tensors += [(p + f"self_attn.{n}_proj.weight", [D, D]) for n in "qkvo"]
    tensors += [(p + "mlp.gate_proj.weight", [F, D]), (p + "mlp.up_proj.weight", [F, D]),
                (p + "mlp.down_proj.weight", [D, F]), (p + "input_layernorm.weight", [D]),
                (p + "post_attention_layernorm.weight", [D])]
tensors += [("model.norm.weight", [D]), ("lm_head.weight", [V, D])]
total = sum(2 * s[0] * (s[1] if len(s) > 1 else 1) for _, s in tensors)
shards = 3
groups, size = [[] for _ in range(shards)], 0
for name, shape in tensors:
    groups[min(shards - 1, size * shards // total)].append((name, shape))
    size += 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
for t in range(4):
    path = os.path.join(folder, f"in{t}")
    os.makedirs(path, exist_ok=True)
    index = {}
    for k, group in enumerate(groups):
        header, at = {}, 0
        name_of = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        for name, shape in group:
            n = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
            index[name] = name_of
            at += n
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(path, name_of), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            begin = f.tell()
            f.truncate(begin + at)
            for name, shape in group:  # the first row of each: something to average
                f.seek(begin + header[name]["data_offsets"][0])
                value = struct.unpack("<I", struct.pack("<f", float(t + 1)))[0] >> 16
                f.write(struct.pack("<H", value) * 64)
    with open(os.path.join(path, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)
print(f"{len(tensors)} tensors, {total / 2e9:.2f} billion parameters, {total / 1e9:.1f} GB an input")
PY

inputs=("$folder"/in0 "$folder"/in1 "$folder"/in2 "$folder"/in3)
rm -rf "$folder/out" "$folder/out.part"
"$isofed" merge "${inputs[@]}" --method "$method" --dtype BF16 --memory-limit 2GiB --dry-run -o "$folder/out" ||
    echo "(refused within 2 GiB)"

if [ "${PLAN_ONLY:-0}" = 0 ]; then
    echo "reading the inputs and writing the bytes of one, by dd:"
    start=$(date +%s.%N)
    for f in "$folder"/in?/*.safetensors; do dd if="$f" of=/dev/null bs=4M status=none; done
    for f in "$folder"/in0/*.safetensors; do dd if="$f" of="$folder/copy" bs=4M conv=fdatasync status=none; done
    rm -f "$folder/copy"
    copied=$(date +%s.%N)
    /usr/bin/env python3 - "$isofed" "$folder" "$method" "${inputs[@]}" <<'PY'
import resource, subprocess, sys, time
isofed, folder, method, inputs = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
start = time.time()
subprocess.run([isofed, "merge", *inputs, "--method", method, "--dtype", "BF16", "--memory-limit",
                "2GiB", "-o", folder + "/out"], check=True)
u = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"merge: {time.time() - start:.1f} s, peak memory {u.ru_maxrss / 1048576:.2f} GiB, "
      f"processor {u.ru_utime + u.ru_stime:.1f} s")
PY
    echo "copy: $(python3 -c "print(f'{$copied - $start:.1f} s')")"
    rm -rf "$folder/out"
fi
