# The coordinator dies by SIGKILL at every named persistence step that is its own (security.md 6.3):
# around a chunk (F1 F2), around the blob (F3 F4 F5), around receipt, worker, gate, signature, offers
# (F6 F8 F10 F11 F12 F13), inside an audit append (F25). After each it is started again and the round
# ends in a release; nothing acknowledged is lost, nothing counted twice (I1), and the release holds
# the bytes of an undisturbed run (I8, S89).
. tests/federation.sh
fed_steps=10

adapter() { # digest of the merged adapter of release $1
    fed_centre releases show "$1" --json >"$work/one.json"
    fed_field "$work/one.json" '[f["digest"] for f in j["files"] if f["path"] == "adapter/adapter_model.safetensors"][0]'
}

run_with() { # POINT or nothing; prints the adapter's digest
    rm -rf "${work:?}"/*
    fed_begin 1 north:t1 south:t1 >/dev/null
    fed_start centre || fail "centre did not start"
    for s in north south; do fed_enroll $s; fed_start $s || fail "$s did not start"; done
    if [[ -n ${1:-} ]]; then
        fed_stop centre
        fed_start centre --crash-at "$1" || fail "$1: centre did not start"
    fi
    fed_centre rounds open --tasks t1 >/dev/null
    if [[ -n ${1:-} ]]; then
        for _ in $(seq 600); do
            kill -0 "${fed_pid[centre]}" 2>/dev/null || break
            sleep 0.05
        done
        kill -0 "${fed_pid[centre]}" 2>/dev/null && fail "$1: the point was not reached"
        wait "${fed_pid[centre]}" 2>/dev/null || [[ $? == 137 ]] || fail "$1: died otherwise"
        fed_start centre || fail "$1: centre did not come back"
    fi
    timeout 90 "$bin/isofed" rounds watch --dir "$work/centre" --quiet || fail "${1:-undisturbed}: no release"
    fed_centre status --json >"$work/status.json"
    [[ $(fed_field "$work/status.json" '(j["updates_acknowledged"], j["updates_used"], j["updates_pending"])') == "(4, 4, 0)" ]] ||
        fail "${1:-undisturbed}: I1: $(cat "$work/status.json")"
    fed_centre audit verify >/dev/null || fail "${1:-undisturbed}: I7: the audit chain does not hold"
    digest=$(adapter 1)
    for s in centre north south; do fed_stop $s; done
}

run_with
undisturbed=$digest
for point in ${POINTS:-F1 F2 F3 F4 F5 F6 F8 F10 F11 F12 F13 F25:10}; do
    run_with "$point"
    [[ $digest == "$undisturbed" ]] || fail "$point: I8: other bytes than the undisturbed run"
    echo "$point: ok"
done
echo "ok"
