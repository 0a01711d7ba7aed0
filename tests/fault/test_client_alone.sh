# A client without a coordinator waits and says so (U23); a second one on the folder is told who
# holds it (U9, S81); the pre-flight check names what is wrong (U5); nothing is left behind by a kill.
. tests/federation.sh
fed_begin 1 north:t1
fed_start centre || fail "the coordinator did not start"
client="$bin/isofed-client"

code=0
"$client" "$work/north" 2>"$work/err" || code=$?
[[ $code == 2 ]] && grep -q "not enrolled" "$work/err" || fail "not enrolled: $code $(cat "$work/err")"

fed_enroll north
"$client" --check "$work/north" >"$work/check" || fail "check: $(cat "$work/check")"
for line in config keys enrolment name port coordinator clock disk memory data backbone; do
    grep -q "^ok  *$line" "$work/check" || fail "check says nothing of $line: $(cat "$work/check")"
done

fed_stop centre
code=0
"$client" --check "$work/north" >"$work/check" || code=$?
[[ $code == 1 ]] && grep -q "^NOT OK port .*only port needed" "$work/check" || fail "port: $(cat "$work/check")"
mv "$work/backbone" "$work/elsewhere"
"$client" --check "$work/north" >"$work/check" || true
grep -q "^NOT OK backbone" "$work/check" || fail "backbone: $(cat "$work/check")"
mv "$work/elsewhere" "$work/backbone"

fed_start north || fail "the client does not start without a coordinator"
for _ in $(seq 100); do
    "$bin/isofed" status --dir "$work/north" --json >"$work/status.json"
    [[ $(fed_field "$work/status.json" '"waiting for" in j["link"] and "next try in" in j["link"]') == True ]] && break
    sleep 0.05
done
[[ $(fed_field "$work/status.json" '"waiting for" in j["link"] and "next try in" in j["link"]') == True ]] ||
    fail "status: $(cat "$work/status.json")"

code=0
"$client" "$work/north" 2>"$work/err" || code=$?
[[ $code == 5 ]] && grep -q "process ${fed_pid[north]}" "$work/err" || fail "second start: $code $(cat "$work/err")"
code=0
"$client" "$work/north" --chek 2>"$work/err" || code=$?
[[ $code == 2 ]] && grep -q -- "--check" "$work/err" || fail "misspelt option: $(cat "$work/err")"
"$client" --what-leaves | grep -q metadata.json || fail "what leaves"

fed_kill north
fed_start north || fail "no start after a kill"
pid=${fed_pid[north]}
kill -TERM "$pid"
code=0
wait "$pid" || code=$?
unset "fed_pid[north]"
[[ $code == 0 && ! -e $work/north/control.sock ]] || fail "no clean stop: $code"
echo "ok"
