# The disk fills up under the coordinator, then under a site (S87, T15): updates are refused with
# DISK or wait, nothing that was acknowledged is lost, nothing counts twice, and with room again the
# round ends in the bytes of a federation whose disk was never full. Each state folder lies on a small file
# system of its own, which only root may mount.
. tests/federation.sh
mkdir -p "$work/centre" "$work/north"
mount -t tmpfs -o size=24m none "$work/centre" 2>/dev/null || { echo "skipped: only root can mount a small file system"; exit 0; }
mount -t tmpfs -o size=24m none "$work/north"
unmount() {
    local name
    for name in "${!fed_pid[@]}"; do kill -KILL "${fed_pid[$name]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    umount "$work/centre" "$work/north" 2>/dev/null || true
    rm -rf "$work"
}
trap unmount EXIT

fill() { # FOLDER: to the last byte
    dd if=/dev/zero of="$1/filler" bs=4k status=none 2>/dev/null || true
}

in_round() {
    fed_centre status --json >"$work/status.json" && [[ $(fed_value "$work/status.json" round_state) == "$1" ]]
}

adapter() { # of release $1
    fed_centre releases show "$1" --json >"$work/one.json"
    fed_field "$work/one.json" '[f["digest"] for f in j["files"] if f["path"] == "adapter/adapter_model.safetensors"][0]'
}

begin() {
    fed_begin 1 north:t1 south:t1
    echo "limits: {disk_floor: 6MiB, disk_reserve: 4MiB}" >>"$work/centre/coordinator.yaml"
    echo "limits: {disk_floor: 1MiB}" >>"$work/north/client.yaml"
    fed_start centre || fail "centre did not start"
    for s in north south; do fed_enroll $s; fed_start $s || fail "$s did not start"; done
}

# ---- undisturbed ----
begin
for n in 1 2 3; do fed_round t1 || fail "undisturbed round $n"; done
for n in 1 2 3; do calm[n]=$(adapter $n); done
for s in north south centre; do fed_stop $s; done
for s in north centre; do find "$work/$s" -mindepth 1 -delete; done
rm -rf "$work/south" "$work/tasks" "$work/backbone"

# ---- the coordinator's disk: known to be full before an update is offered ----
begin
fed_round t1 || fail "no first release"
head -c 14M /dev/zero >"$work/centre/filler"
refused() { grep -q "code=DISK" "$work/centre.log"; }
sleep 6 # the coordinator looks every 5 s
fed_centre rounds open --tasks t1 >/dev/null || fail "round 2 could not be opened"
fed_wait 20 refused || fail "no update was refused for want of room"
in_round open || fail "round 2 is not open: $(cat "$work/status.json")"
[[ $(fed_value "$work/status.json" updates_acknowledged) == 4 ]] || fail "acknowledged without room"

# ---- and then really full: a command that cannot be stored is told so, the daemon lives on ----
fill "$work/centre"
for _ in $(seq 20); do "$bin/isofed" token new --site other --dir "$work/centre" >>"$work/out" 2>&1 || break; done
grep -q "not_stored" "$work/out" || grep -q "event=commit_failed" "$work/centre.log" || fail "a full disk was not noticed: $(cat "$work/out")"
grep -q "event=commit_failed" "$work/centre.log" || fail "the full disk is not in the log"
rm "$work/centre/filler"
kill -0 "${fed_pid[centre]}" 2>/dev/null || fail "centre stopped"
timeout 90 "$bin/isofed" rounds watch --dir "$work/centre" --quiet || fail "round 2 did not end when there was room again"

# ---- a site's disk ----
fed_centre rounds open --tasks t1 >/dev/null || fail "round 3 could not be opened"
fill "$work/north"
full() { grep -q "No space left\|disk is full" "$work/north.log"; }
fed_wait 30 full || fail "north does not say that its disk is full"
rm "$work/north/filler"
# What it cannot do without room stops it (exit 5, started again by its unit); the rest is tried again.
kill -0 "${fed_pid[north]}" 2>/dev/null || fed_start north || fail "north did not come back with room"
timeout 120 "$bin/isofed" rounds watch --dir "$work/centre" --quiet || fail "round 3 did not end when north had room again"

for n in 1 2 3; do
    [[ $(adapter $n) == "${calm[n]}" ]] || fail "I8: release $n has other bytes than undisturbed"
done
fed_centre status --json >"$work/status.json"
[[ $(fed_field "$work/status.json" '(j["updates_acknowledged"], j["updates_used"], j["updates_refused"], j["updates_pending"])') == "(8, 8, 0, 0)" ]] ||
    fail "I1: $(cat "$work/status.json")"
fed_centre audit verify >/dev/null || fail "I7: the audit chain does not hold"
echo "S87_a_full_disk_loses_nothing ok"
