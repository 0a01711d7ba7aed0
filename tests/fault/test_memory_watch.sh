# The watchdog of memory (S46): with a ceiling far below what the coordinator needs every idle
# connection is cut, by name, while one whose update is being made durable stays; with the ceiling
# raised again the same federation ends its round.
. tests/federation.sh
fed_begin 1 north:t1
fed_start centre || fail "centre did not start"
fed_enroll north
fed_stop centre
cp "$work/centre/coordinator.yaml" "$work/plain.yaml"
echo "limits: {memory: 1MiB}" >>"$work/centre/coordinator.yaml"
fed_start centre || fail "centre did not start with little memory"
fed_start north || fail "north did not start"
site=$("$bin/isofed" status --dir "$work/north" --json | fed_field - 'j["site"]')
cut() { (($(grep -c "event=memory_cut.*user=s:$site" "$work/centre.log") >= 2)); }
fed_wait 20 cut || fail "north was not cut twice: $(grep memory "$work/centre.log")"
grep -q "event=memory_high .*ceiling=1048576" "$work/centre.log" || fail "the ceiling is not named"
fed_centre status --json >/dev/null || fail "operators are not served"
fed_stop centre
cp "$work/plain.yaml" "$work/centre/coordinator.yaml"
before=$(grep -c memory_cut "$work/centre.log")
fed_start centre || fail "centre did not start again"
fed_round t1 || fail "no release"
[[ $(grep -c memory_cut "$work/centre.log") == "$before" ]] || fail "cut with memory to spare"
echo "S46_the_watchdog_cuts_idle_connections ok"
