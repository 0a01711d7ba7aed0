# Sourced by tests that run a real federation on loopback: one coordinator, some clients, in a
# temporary folder that goes away at the end. Every process is stopped by its own pid.
#
#   fed_begin TASKS SITE...     miniature backbone and images; SITE is NAME:TASK[,TASK]
#   fed_start / fed_stop NAME   (centre, or a site); fed_kill NAME: SIGKILL
#   fed_enroll NAME             token, keys, enrolment
#   fed_round TASKS             opens a round and waits for its end
#   fed_field FILE|- EXPRESSION prints a value of a JSON text (python expression over `j`)
#   fed_value FILE KEY          the same for the first plain value of that name, at once
#   fed_wait SECONDS COMMAND... until it succeeds; false when it never does
set -euo pipefail

bin=${ISO_BIN:-$1}
build=$1
work=$(mktemp -d /tmp/isofed-test-XXXXXX)
declare -A fed_pid=()

fed_end() {
    local name
    for name in "${!fed_pid[@]}"; do kill -KILL "${fed_pid[$name]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap fed_end EXIT

fail() {
    echo "FAIL: $*" >&2
    local log
    for log in "$work"/*.log; do [[ -f $log ]] && { echo "--- ${log##*/}"; tail -n 15 "$log"; } >&2; done
    exit 1
}

fed_field() { # FILE EXPRESSION
    python3 -c 'import json,sys
j = json.load(sys.stdin if sys.argv[1] == "-" else open(sys.argv[1]))
print(eval(sys.argv[2]))' "$1" "$2"
}

fed_value() { # FILE KEY
    local text
    text=$(<"$1")
    [[ $text =~ \"$2\":\ *\"?([^\",}]*) ]] && echo "${BASH_REMATCH[1]%$'\n'*}"
}

fed_wait() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

fed_dir() { echo "$work/$1"; }

fed_begin() {
    local tasks=$1 spec name list t owners n
    shift
    "$build/isofed-fixture" "$work" "$tasks"
    "$bin/isofed" init coordinator "$work/centre" --name test --listen 127.0.0.1:0 \
        --backbone "$work/backbone" --quiet
    {
        echo "federation: test"
        echo "listen: 127.0.0.1:0"
        echo "backbone: $work/backbone"
        echo "rounds: {trigger: operator, deadline: ${fed_deadline:-5m}, evaluate_timeout: 1m}"
        echo "gate: {metric: accuracy_refit, margin: 0.5}"
        echo "candidates:"
        for t in ${fed_methods:-iso_cts}; do echo "  - {method: $t}"; done
        echo "tasks:"
        for ((t = 1; t <= tasks; t++)); do
            owners='' n=0
            for spec in "$@"; do
                [[ ",${spec#*:}," == *",t$t,"* ]] && { owners+="${owners:+, }${spec%%:*}"; n=$((n + 1)); }
            done
            echo "  - {name: t$t, classes: [a, b, c], sites: [$owners], quorum: ${fed_quorum:-$n}, rank: 4, alpha: 8, rank_cap: 8, steps: ${fed_steps:-20}, learning_rate: 0.003, batch: 8, warmup: 2, head: fixed, seed: 1, min_samples: 1}"
        done
    } >"$work/centre/coordinator.yaml"
    for spec in "$@"; do
        name=${spec%%:*}
        "$bin/isofed" init client "$work/$name" --backbone "$work/backbone" --quiet
        {
            echo "backbone: $work/backbone"
            echo "threads: 1"
            echo "link: {spread: 1s}" # a restart of the coordinator is over in a moment, not in half a minute
            echo "data:"
            for t in $(tr , ' ' <<<"${spec#*:}"); do echo "  - {task: $t, folder: $work/tasks/$t}"; done
        } >"$work/$name/client.yaml"
    done
}

fed_start() { # NAME [OPTION...]
    local name=$1 program socket
    shift
    if [[ $name == centre ]]; then program=isofed-coordinator socket=admin.sock; else program=isofed-client socket=control.sock; fi
    "$bin/$program" "$work/$name" "$@" 2>>"$work/$name.log" &
    fed_pid[$name]=$!
    for _ in $(seq 200); do
        "$bin/isofed" status --dir "$work/$name" --json >/dev/null 2>&1 && return 0
        kill -0 "${fed_pid[$name]}" 2>/dev/null || return 1
        sleep 0.05
    done
    fail "$name did not answer on $socket"
}

fed_stop() {
    kill -TERM "${fed_pid[$1]}" 2>/dev/null || true
    wait "${fed_pid[$1]}" 2>/dev/null || true
    unset "fed_pid[$1]"
}

fed_kill() {
    kill -KILL "${fed_pid[$1]}" 2>/dev/null || true
    wait "${fed_pid[$1]}" 2>/dev/null || true
    unset "fed_pid[$1]"
}

fed_enroll() {
    local line
    line=$("$bin/isofed" token new --site "$1" --dir "$work/centre")
    "$bin/isofed" enroll "$line" --dir "$work/$1" --name "$1" >/dev/null
}

fed_round() {
    "$bin/isofed" rounds open --tasks "$1" --dir "$work/centre" >/dev/null
    timeout "${2:-120}" "$bin/isofed" rounds watch --dir "$work/centre" --quiet
}

fed_centre() { "$bin/isofed" "$@" --dir "$work/centre"; }
