# A whole federation of real processes: two sites share a task, a third has another; head round,
# adapter round, merge, evaluation, signed release, trial and swap at every site. The release is
# checked by the minisign program, an independent judge.
. tests/federation.sh
fed_begin 2 north:t1 south:t1 east:t2
fed_start centre || fail "the coordinator did not start"
for s in north south east; do fed_enroll $s; fed_start $s || fail "$s did not start"; done
fed_round t1,t2 || fail "no release"

fed_centre rounds list --json >"$work/rounds.json"
[[ $(fed_field "$work/rounds.json" '[r["state"] for r in sorted(j["rounds"], key=lambda r: r["number"])]') == "['done', 'released']" ]] ||
    fail "rounds: $(cat "$work/rounds.json")"
for _ in $(seq 100); do
    fed_centre releases list --json >"$work/releases.json"
    [[ $(fed_field "$work/releases.json" 'j["releases"][0]["accepted"]') == 3 ]] && break
    sleep 0.1
done
[[ $(fed_field "$work/releases.json" 'j["releases"][0]["accepted"]') == 3 ]] || fail "not every site accepted release 1"

for s in north south east; do
    folder=$work/$s/releases/1
    minisign -V -q -m "$folder/release.json" -p "$work/centre/release/minisign.pub" || fail "$s: minisign refuses"
    "$bin/isofed" releases verify "$folder" --key "$work/centre/release/minisign.pub" >/dev/null || fail "$s: verify refuses"
done
fed_centre audit verify >/dev/null || fail "the audit chain does not hold"
fed_centre status --json >"$work/status.json"
[[ $(fed_field "$work/status.json" 'j["updates_acknowledged"] == j["updates_used"] + j["updates_refused"] and j["updates_used"] == 6') == True ]] ||
    fail "I1: $(cat "$work/status.json")"
echo "ok"
