# kill -9 of any daemon at 50 random moments of running rounds: nothing acknowledged is lost, nothing
# is counted twice, and every release holds the same merged bytes as an undisturbed run of the same
# seed (I1, I2, I7, I8, S89).
. tests/federation.sh
kills=${KILLS:-50}
seed=${SEED:-$RANDOM}
RANDOM=$seed
echo "seed $seed"
fed_steps=60

digests() { # of the merged adapters of releases 1 to $1
    local n
    echo '[' >"$work/all.json"
    for ((n = 1; n <= $1; n++)); do
        ((n == 1)) || echo ','
        fed_centre releases show "$n" --json
    done >>"$work/all.json"
    echo ']' >>"$work/all.json"
    fed_field "$work/all.json" '"\n".join(f["digest"] for r in j for f in r["files"] if f["path"] == "adapter/adapter_model.safetensors")'
}

settle() { # waits for the newest round to end
    timeout 180 "$bin/isofed" rounds watch --dir "$work/centre" --quiet
}

begin() {
    fed_begin 2 north:t1 south:t1 east:t2
    fed_start centre || fail "centre did not start"
    for s in north south east; do fed_enroll $s; fed_start $s || fail "$s did not start"; done
}

# ---- with kills ----
begin
names=(centre north south east)
rounds=0 done_kills=0
while ((done_kills < kills)); do
    fed_centre rounds open --tasks t1,t2 >/dev/null || fail "round $((rounds + 1)) could not be opened"
    rounds=$((rounds + 1))
    for ((k = 0; k < 6 && done_kills < kills; k++)); do # some rounds come to their end in between
        sleep "0.$((RANDOM % 6))$((RANDOM % 10))"
        victim=${names[$((RANDOM % 4))]}
        fed_kill "$victim"
        fed_start "$victim" || fail "kill $done_kills: $victim did not come back"
        done_kills=$((done_kills + 1))
        fed_centre status --json >"$work/status.json"
        state=$(fed_value "$work/status.json" round_state)
        case $state in
        released) break ;;
        held | failed | aborted) fail "kill $done_kills of $victim: round ended as $state" ;;
        esac
    done
    settle || fail "round $rounds did not end in a release"
done
fed_centre status --json >"$work/status.json"
[[ $(fed_field "$work/status.json" 'j["updates_acknowledged"] == j["updates_used"] + j["updates_refused"] + j["updates_pending"]') == True ]] ||
    fail "I1: $(cat "$work/status.json")"
# One head update and one adapter update a round, of each site; none twice.
[[ $(fed_field "$work/status.json" 'j["updates_used"]') == $((3 + 3 * rounds)) ]] ||
    fail "I1: $(fed_field "$work/status.json" 'j["updates_used"]') updates used, expected $((3 + 3 * rounds))"
fed_centre audit verify >/dev/null || fail "I7: the audit chain does not hold"
disturbed=$(digests $rounds)
for s in centre north south east; do fed_stop $s; done
rm -rf "${work:?}"/*

# ---- undisturbed ----
begin
for ((i = 0; i < rounds; i++)); do fed_round t1,t2 || fail "undisturbed round"; done
[[ $(digests $rounds) == "$disturbed" ]] || fail "I8: releases differ from the undisturbed run:
$disturbed
against
$(digests $rounds)"
echo "ok: $done_kills kills in $rounds rounds, $rounds releases equal to the undisturbed ones"
