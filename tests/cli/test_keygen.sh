#!/bin/bash
# isofed keygen: modes, never over an existing key, one-line errors, exit codes (S10 - S12, U42).
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

expect 0 usage example -- "$isofed" keygen --help
expect 0 merge_key_id "no passphrase" -- "$isofed" keygen --kind merge -o "$dir/m.key" --no-passphrase
expect 4 "never overwritten" -- "$isofed" keygen --kind merge -o "$dir/m.key" --no-passphrase
expect 2 "--kind" -- "$isofed" keygen -o "$dir/x.key" --no-passphrase
expect 2 "-o FILE" -- "$isofed" keygen --kind audit --no-passphrase
expect 2 root -- "$isofed" keygen --kind rooot -o "$dir/x.key" --no-passphrase
expect 2 exclude -- "$isofed" keygen --kind audit -o "$dir/x.key" --no-passphrase --passphrase-fd 0
expect 5 "cannot create" -- "$isofed" keygen --kind audit -o "$dir/none/x.key" --no-passphrase
[ -e "$dir/x.key" ] && { echo "FAILED: a refused key was written"; failed=1; }

printf 'open sesame\n' | "$isofed" keygen --kind audit -o "$dir/a.key" --passphrase-fd 0 -q ||
    { echo "FAILED: sealed key"; failed=1; }
grep -q '^kdf: argon2id 3 268435456$' "$dir/a.key" || { echo "FAILED: not sealed"; failed=1; }
for f in m a; do
    [ "$(stat -c %a "$dir/$f.key")" = 600 ] || { echo "FAILED: mode of $f.key"; failed=1; }
done

expect 0 '"kind":"root"' '"fingerprint":"' '"sealed":false' -- \
    "$isofed" keygen --kind root -o "$dir/root.key" --no-passphrase --json
if command -v minisign >/dev/null; then
    echo release >"$dir/file"
    minisign -S -W -H -s "$dir/root.key" -m "$dir/file" </dev/null >/dev/null 2>&1 &&
        minisign -V -H -p "$dir/root.pub" -m "$dir/file" >/dev/null 2>&1 ||
        { echo "FAILED: minisign does not take the pair"; failed=1; }
fi
exit $failed
