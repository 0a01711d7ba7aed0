#!/bin/bash
# The arrows between the rooms hold, and the checker that says so finds each kind of offence.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
checker=$here/layering.sh

bash "$checker" "$here/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

# Makes a small tree: core, merge, nn, coordinator with a table of its own.
fresh_tree() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree/tools" "$work/tree/core" "$work/tree/merge/linalg" "$work/tree/nn" \
        "$work/tree/coordinator" "$work/tree/tests" "$work/tree/build/x"
    cat >"$work/tree/tools/layering.txt" <<'TABLE'
# rooms
core:
merge: core
nn: core
coordinator: core merge
tests: *
!cblas.h: merge/linalg/* tests/*
!yaml.h: core/yaml.c
!**omp**: merge/linalg/*
~coordinator/round.[ch]: time.h sys/*
TABLE
    printf '#include <yaml.h>\n#include "core/yaml.h"\n' >"$work/tree/core/yaml.c"
    printf '#include <stddef.h>\n' >"$work/tree/core/yaml.h"
    printf '#include "core/yaml.h"\n#pragma omp simd\n' >"$work/tree/merge/m.c"
    printf '#include <cblas.h>\n#pragma omp parallel for\n' >"$work/tree/merge/linalg/qr.c"
    printf '#include "merge/m.h"\n#include "core/yaml.h"\n' >"$work/tree/coordinator/round.c"
    printf '#include "nn/x.h"\n#include <cblas.h>\n' >"$work/tree/tests/t.c"
    printf '#include "nn/x.h"\n' >"$work/tree/build/x/generated.c"
}

# check CODE PATTERN: the checker ends with CODE and prints a line that matches PATTERN.
check() {
    local code=0 output
    output=$(bash "$checker" "$work/tree" 2>&1) || code=$?
    if [ "$code" != "$1" ] || ! grep -qE "$2" <<<"$output"; then
        echo "expected $1 and \"$2\", got $code and: $output"
        failures=$((failures + 1))
    fi
}

fresh_tree
check 0 '^layering holds'

# file | its text | the line that must come
while IFS='|' read -r file text pattern; do
    fresh_tree
    mkdir -p "$work/tree/$(dirname "$file")"
    printf '%b\n' "$text" >"$work/tree/$file"
    check 1 "$pattern"
done <<'ROWS'
core/a.c|#include "merge/m.h"|^core/a.c:1: core may not include merge/m.h
core/a.c|\n  #  include <nn/x.h>|^core/a.c:2: core may not include nn/x.h
merge/a.h|#include "nn/x.h"|^merge/a.h:1: merge may not include nn/x.h
merge/linalg/a.c|#include "coordinator/round.h"|^merge/linalg/a.c:1: merge may not include
merge/a.c|#include <cblas.h>|^merge/a.c:1: cblas.h belongs to
merge/a.c|#include <openblas/cblas.h>|^merge/a.c:1: cblas.h belongs to
merge/a.c|#include "cblas.h"|^merge/a.c:1: cblas.h belongs to
core/a.c|#include <yaml.h>|^core/a.c:1: yaml.h belongs to
merge/a.c|#pragma omp parallel for simd|^merge/a.c:1: #pragma omp belongs to
merge/a.c|#include "../core/yaml.h"|^merge/a.c:1: .* not with ..
merge/a.c|#include "m.h"|^merge/a.c:1: .*named from the root
coordinator/round.h|#include <time.h>|^coordinator/round.h:1: a pure core may not include time.h
coordinator/round.c|#include <sys/stat.h>|^coordinator/round.c:1: a pure core may not include sys/stat.h
attic/a.c|int x;|^attic/a.c: folder attic/ has no row
ROWS

fresh_tree
echo 'merge: core cellar' >>"$work/tree/tools/layering.txt"
check 2 'unknown room "cellar"'
fresh_tree
echo 'no colon' >>"$work/tree/tools/layering.txt"
check 2 'expected "name:'

[ "$failures" = 0 ] || { echo "$failures checks of the checker failed"; exit 1; }
