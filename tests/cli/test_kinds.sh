#!/bin/bash
# isofed train for every kind of adapter, centralize and its difference, stage 1, sequences: what is
# written is read again, the same bits for any number of threads, bad wishes in one line.
set -u
isofed=$1/isofed
dir=$(mktemp -d) || exit 5
trap 'rm -rf "$dir"' EXIT
failed=0

# expect CODE WORDS... -- COMMAND...: exit code, and every word in the output
expect() {
    local code=$1 words=() out got
    shift
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    out=$("$@" 2>&1)
    got=$?
    [ $got -eq "$code" ] || { echo "FAILED ($got, not $code): $*: $out"; failed=1; }
    for word in "${words[@]}"; do
        [[ $out == *"$word"* ]] || { echo "FAILED (no \"$word\"): $*: $out"; failed=1; }
    done
    if [ "$code" -ne 0 ] && [ "$(wc -l <<<"$out")" -ne 1 ]; then
        echo "FAILED (not one line): $*: $out"; failed=1
    fi
}

same() {
    cmp -s "$1" "$2" || { echo "FAILED: $1 and $2 differ"; failed=1; }
}

"$1/isofed-fixture" "$dir/f" 3 1 || exit 5
b=$dir/f/backbone t=$dir/f/tasks
train=("$isofed" train --backbone "$b" --quiet --steps 6 --batch 8 --eval-every 0 --warmup 0)

# every kind: trains, scores as it was written, the same bits with one and two threads
kind() {
    local name=$1
    shift
    expect 0 "own adapter" -- "${train[@]}" --data "$t/t1" --threads 1 "$@" -o "$dir/$name"
    expect 0 "own adapter" -- "${train[@]}" --data "$t/t1" --threads 2 "$@" -o "$dir/$name-2"
    same "$dir/$name/adapter_model.safetensors" "$dir/$name-2/adapter_model.safetensors"
    same "$dir/$name/adapter_config.json" "$dir/$name-2/adapter_config.json"
    expect 0 "as delivered" -- "$isofed" eval --backbone "$b" --adapter "$dir/$name" --quiet \
        --head "$dir/$name/head.safetensors" --data "$t/t1"
}
kind lora --rank 2
for form in both lora multiplicative additive; do kind "f-$form" --adapter factorised --form $form --rank 2; done
kind data --adapter data --rank-lo 1 --rank-hi 2 --prompts 2 --gap 1 --ortho 1
kind data-sum --adapter data --reduce sum --restore-every 0.3 --restore-p 0.5
kind fixed --adapter data --fixed-gate 0.5
kind lite --adapter toast --rank 2
kind full --adapter toast --full --train-p --value-bias twice
expect 0 "gates folded" "labels as per sample" -- "$isofed" eval --backbone "$b" --adapter "$dir/data" \
    --head "$dir/data/head.safetensors" --data "$t/t1" --quiet

# at its mean gates it is a LoRA: evaluated, merged, put into a backbone
expect 0 "as delivered" -- "$isofed" eval --backbone "$b" --adapter "$dir/data/folded" \
    --head "$dir/data/head.safetensors" --data "$t/t1" --quiet
expect 0 "" -- "$isofed" merge "$dir/data/folded" "$dir/lora" --method iso_c -o "$dir/merged" --quiet
expect 0 "generation 1 of 1 adapters" -- "$isofed" centralize --backbone "$b" -o "$dir/with" "$dir/data/folded"

# wishes of another kind, and nonsense
expect 2 "--full belongs to --adapter toast" -- "${train[@]}" --data "$t/t1" --full -o "$dir/no"
expect 2 "--form belongs to --adapter factorised" -- "${train[@]}" --data "$t/t1" --form lora -o "$dir/no"
expect 2 "--stage belongs to --adapter toast" -- "${train[@]}" --data "$t/t1" --stage 1 -o "$dir/no"
expect 2 "kind" -- "${train[@]}" --data "$t/t1" --adapter magic -o "$dir/no"
expect 2 "rows" -- "${train[@]}" --data "$t/t1" --adapter data --prompts 4000 -o "$dir/no"

# stage 1: start tensors beside the backbone are used, and adapters of other ones refused
for by in ridge train; do
    cp -r "$b" "$dir/b-$by"
    expect 0 top_down.safetensors -- "${train[@]}" --data "$t/t1" --adapter toast --stage 1 \
        --stage1-by $by -o "$dir/start-$by"
    cp "$dir/start-$by/top_down.safetensors" "$dir/b-$by"
    expect 0 "own adapter" -- "$isofed" train --backbone "$dir/b-$by" --quiet --steps 4 --data "$t/t1" \
        --adapter toast --rank 2 -o "$dir/lite-$by"
    expect 3 "made from start tensors" -- "$isofed" eval --backbone "$b" --adapter "$dir/lite-$by" \
        --head "$dir/lite-$by/head.safetensors" --data "$t/t1" --quiet
done

# centralize: a step, the same step elsewhere, what is refused
for k in 1 2 3; do
    expect 0 "own adapter" -- "${train[@]}" --data "$t/t$k" --adapter factorised --rank 2 -o "$dir/block-$k"
done
expect 0 "generation 1 of 3 adapters" -- "$isofed" centralize --backbone "$b" -o "$dir/gen1" \
    "$dir/block-1" "$dir/block-2" "$dir/block-3" --threads 1
expect 0 "generation 1" -- "$isofed" centralize --backbone "$b" -o "$dir/gen1-again" \
    --apply "$dir/gen1/difference.safetensors" --threads 2
same "$dir/gen1/model.safetensors" "$dir/gen1-again/model.safetensors"
expect 0 iso_c -- "$isofed" centralize --backbone "$b" -o "$dir/gen1-iso" --method iso_c --json \
    "$dir/block-1" "$dir/block-2"
expect 0 "own adapter" -- "$isofed" train --backbone "$dir/gen1" --quiet --steps 4 --data "$t/t1" \
    --adapter factorised --rank 2 -o "$dir/next"
expect 0 "generation 2 of 1 adapters" -- "$isofed" centralize --backbone "$dir/gen1" -o "$dir/gen2" "$dir/next"
expect 4 "was trained on generation" -- "$isofed" centralize --backbone "$dir/gen1" -o "$dir/no" "$dir/block-1"
expect 3 "trained on generation" -- "$isofed" eval --backbone "$dir/gen1" --adapter "$dir/block-1" --quiet \
    --head "$dir/block-1/head.safetensors" --data "$t/t1"
expect 4 "it starts from generation" -- "$isofed" centralize --backbone "$dir/gen1" -o "$dir/no" \
    --apply "$dir/gen1/difference.safetensors"
expect 2 "never overwritten" -- "$isofed" centralize --backbone "$b" -o "$dir/gen1" "$dir/block-1"
expect 2 "give adapters" -- "$isofed" centralize --backbone "$b" -o "$dir/no"
expect 2 "2 weights for 1" -- "$isofed" centralize --backbone "$b" -o "$dir/no" -w 1,2 "$dir/block-1"
expect 3 "is not centralized" -- "$isofed" centralize --backbone "$b" -o "$dir/no" "$dir/data"
[ -e "$dir/no" ] && { echo "FAILED: something was written after a refusal"; failed=1; }

# sequences
printf '# three tasks\nf/tasks/t1\nf/tasks/t2 # second\n\nf/tasks/t3\n' > "$dir/list"
sequence=("$isofed" train --backbone "$b" --quiet --steps 4 --batch 8 --eval-every 0 --warmup 0 --sequence "$dir/list")
expect 0 "average accuracy" "forgetting" "forward transfer" -- "${sequence[@]}" -o "$dir/s1" --report "$dir/s1.html"
expect 0 '"bwt"' '"R"' -- "${sequence[@]}" -o "$dir/s2" --adapter data --prompts 2 --json
expect 0 '"forgetting": 0.0' -- "${sequence[@]}" -o "$dir/s3" --mode fresh --json
expect 0 '"adapter": "none"' -- "${sequence[@]}" -o "$dir/s4" --mode frozen --json
expect 0 '"forgetting"' -- "${sequence[@]}" -o "$dir/s5" --adapter factorised --json
printf "f/tasks/t1\n" > "$dir/short"
expect 2 "two tasks at least" -- "$isofed" train --backbone "$b" --sequence "$dir/short" -o "$dir/s6"
grep -q "<svg" "$dir/s1.html" || { echo "FAILED: no picture in the page"; failed=1; }

exit $failed
