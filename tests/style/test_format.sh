#!/bin/bash
# Every C file, tracked or not, is as .clang-format has it.
set -eu
cd "$(dirname "$0")/../.."
formatter=$(command -v clang-format-14 || command -v clang-format) || { echo "clang-format-14 is not installed"; exit 1; }
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    files=$(git ls-files -co --exclude-standard -- '*.c' '*.h')
else # an unpacked archive
    files=$(find . -name build -prune -o \( -name '*.c' -o -name '*.h' \) -print)
fi
# Gone since git last looked: nothing to check.
files=$(grep -vE '(^|/)build/' <<<"$files" | while IFS= read -r f; do [ -f "$f" ] && echo "$f"; done)
[ -n "$files" ] || { echo "no C files found"; exit 1; }
if ! tr '\n' '\0' <<<"$files" | xargs -0 "$formatter" --dry-run -Werror 2>"${TMPDIR:-/tmp}/format.$$"; then
    grep -E 'error:' "${TMPDIR:-/tmp}/format.$$" | cut -d: -f1 | sort | uniq -c |
        sed 's/^ *\([0-9]*\) \(.*\)/\2: \1 places; run clang-format -i/'
    rm -f "${TMPDIR:-/tmp}/format.$$"
    exit 1
fi
rm -f "${TMPDIR:-/tmp}/format.$$"
echo "$(wc -l <<<"$files") files"
