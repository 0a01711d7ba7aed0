# A site that is killed at each of its crash points (specs/security.md 6.3, F14-F19, and between two
# steps of training) ends every round all the same: the update counts once, the release is served,
# and its bytes are those of an undisturbed run (S89, U32). One federation, one round a crash point;
# the same again without kills, as ISO_CALM, writes the digests to compare with.
fed_steps=60
. tests/federation.sh
[[ -n ${ISO_CALM:-} ]] || { ISO_CALM=$work/calm bash "$0" "$build" >"$work/calm.log" 2>&1 || fail "undisturbed run: $(cat "$work/calm.log")"; }
fed_begin 1 north:t1
fed_start centre || fail "the coordinator did not start"
fed_enroll north

round=0
for point in F19 T1:30 T1:55 F14 F15 F16 F17 F18; do
    if [[ -n ${ISO_CALM:-} ]]; then
        fed_start north || fail "the client did not start"
        fed_centre rounds open --tasks t1 >/dev/null || fail "no round"
    else
        fed_start north --crash-at "$point" || true
        pid=${fed_pid[north]}
        fed_centre rounds open --tasks t1 >/dev/null || fail "$point: no round"
        for _ in $(seq 600); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill -0 "$pid" 2>/dev/null && fail "$point: the client came through alive"
        code=0
        wait "$pid" || code=$?
        [[ $code == 137 ]] || fail "$point: the client ended with $code, not by the kill"
        fed_start north || fail "$point: the client did not start again"
    fi
    round=$((round + 1))
    timeout 60 "$bin/isofed" rounds watch --dir "$work/centre" --quiet || fail "$point: no release"
    for _ in $(seq 200); do
        [[ $(readlink "$work/north/current" 2>/dev/null) == "releases/$round" ]] && break
        sleep 0.05
    done
    [[ $(readlink "$work/north/current") == "releases/$round" ]] || fail "$point: release $round is not served"
    for _ in $(seq 100); do
        "$bin/isofed" status --dir "$work/north" --json >"$work/status.json"
        [[ $(fed_field "$work/status.json" 'j["release_detail"]["phase"]') == "" ]] && break
        sleep 0.05
    done
    minisign -V -q -m "$work/north/current/release.json" -p "$work/centre/release/minisign.pub" || fail "$point: minisign refuses"
    (cd "$work/north/current" && sha256sum adapter/adapter_model.safetensors heads/t1.safetensors) >"$work/$round.sum"
    if [[ -n ${ISO_CALM:-} ]]; then
        cp "$work/$round.sum" "$ISO_CALM.$round"
    else
        cmp -s "$work/$round.sum" "$work/calm.$round" || fail "$point: release $round has other bytes than undisturbed"
    fi
    fed_stop north
    echo "$point ok"
done

# I1 at the centre, I9 at the site: head update and adapter update of every round counted once.
fed_centre status --json >"$work/status.json"
[[ $(fed_field "$work/status.json" 'j["updates_acknowledged"] == j["updates_used"] + j["updates_refused"] and j["updates_refused"] == 0') == True ]] ||
    fail "I1: $(cat "$work/status.json")"
fed_centre audit verify >/dev/null || fail "the audit chain does not hold"
echo "ok"
