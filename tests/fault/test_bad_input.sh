# Bad input at the door of both daemons, through the real programs: port in use, a folder that is
# held, unknown key (suggestion), bad value (range); and bad images at a site: unreadable folder,
# empty class, zero-length file, corrupt file among good ones: each named and counted, and the round
# ends all the same. At last a site that is revoked while it is connected.
fed_quorum=1
. tests/federation.sh
fed_begin 1 north:t1 south:t1
coordinator="$bin/isofed-coordinator" client="$bin/isofed-client"

refused() { # NAME CODE PATTERN COMMAND...
    local name=$1 want=$2 pattern=$3 code=0
    shift 3
    timeout 20 "$@" >"$work/out" 2>&1 || code=$?
    [[ $code == "$want" ]] || fail "$name: exit $code, expected $want: $(cat "$work/out")"
    grep -Eq "$pattern" "$work/out" || fail "$name: no \"$pattern\" in: $(cat "$work/out")"
}

with_line() { # DIR FILE LINE COMMAND...: the configuration with one line more
    local dir=$1 file=$2 line=$3
    shift 3
    cp "$dir/$file" "$work/kept.yaml"
    echo "$line" >>"$dir/$file"
    "$@"
    cp "$work/kept.yaml" "$dir/$file"
}

# ---- configuration ----
centre="$work/centre"
with_line "$centre" coordinator.yaml "limts: {credit: 4}" \
    refused "unknown key" 2 'coordinator.yaml:[0-9]+: unknown key "limts"; did you mean "limits"' "$coordinator" "$centre"
with_line "$centre" coordinator.yaml "limits: {credit: 900}" \
    refused "bad value" 2 'coordinator.yaml:[0-9]+: .*"credit" is "900"; expected .*1\.\.8' "$coordinator" "$centre"
with_line "$work/north" client.yaml "treads: 2" \
    refused "unknown key of a client" 2 'client.yaml:[0-9]+: unknown key "treads"; did you mean "threads"' "$client" "$work/north"
with_line "$work/north" client.yaml "val_share: 7" \
    refused "bad value of a client" 2 'client.yaml:[0-9]+: .*"val_share" is "7"; expected a number, 0.01\.\.0.9' "$client" "$work/north"

# ---- who else is there ----
fed_start centre || fail "the coordinator did not start"
port=$(sed 's/.*://' "$centre/endpoint")
refused "two on one folder" 5 "process ${fed_pid[centre]}" "$coordinator" "$centre"
"$bin/isofed" init coordinator "$work/second" --name second --backbone "$work/backbone" --listen "127.0.0.1:$port" --quiet
refused "port in use" 5 "port $port .*in use.*listen" "$coordinator" "$work/second"
fed_centre status --json >/dev/null || fail "the first coordinator was disturbed"

# ---- images ----
fed_enroll north
fed_enroll south
mkdir -p "$work/own"
cp -r "$work/tasks/t1" "$work/own/t1"
sed -i "s|folder: $work/tasks/t1|folder: $work/own/t1|" "$work/south/client.yaml"
images=$work/own/t1/train
one=$(ls "$images/a" | head -n 1)
mkdir "$images/empty" "$images/locked"
: >"$images/a/zero.png"
head -c 40 "$images/a/$one" >"$images/a/cut.png"
{ head -c 60 "$images/a/$one"; head -c 200 /dev/zero; } >"$images/b/rot.png"
echo "no image" >"$images/c/text.png"
cp "$images/a/$one" "$images/locked/one.png"
fed_start north || fail "north did not start"
fed_start south || fail "south did not start"
fed_round t1 || fail "no release in spite of good images"
for name in a/zero.png a/cut.png b/rot.png c/text.png; do
    grep -q "event=image_skipped.*$name" "$work/south.log" || fail "south does not name $name: $(grep image "$work/south.log")"
done
"$bin/isofed" status --dir "$work/south" --json >"$work/south.json"
[[ $(fed_field "$work/south.json" 'j["tasks"][0]["images_skipped"]') == 4 ]] || fail "skipped images are not counted: $(cat "$work/south.json")"
fed_centre rounds show 1 --json >"$work/round.json"
used=$(fed_field "$work/round.json" 'sorted((u["site"], u["verdict"]) for u in j["updates"])')
[[ $used == "[('north', 'used'), ('south', 'used')]" ]] || fail "updates: $used"

# A folder that cannot be read is said, and what was learnt before stays. Root reads everything, so
# the client runs without the capability that lets it.
fed_stop south
chmod 000 "$images/locked"
unprivileged=()
[[ $(id -u) == 0 ]] && unprivileged=(setpriv --bounding-set=-dac_override,-dac_read_search)
if "${unprivileged[@]}" ls "$images/locked" >/dev/null 2>&1; then
    echo "skipped: unreadable folder (this user reads everything)"
else
    "${unprivileged[@]}" "$client" "$work/south" 2>>"$work/south.log" &
    fed_pid[south]=$!
    fed_wait 10 grep -q "event=spool .*locked.*Permission denied" "$work/south.log" || fail "south does not name the folder it cannot read"
    kill -0 "${fed_pid[south]}" || fail "south stopped at a folder that it cannot read"
    fed_stop south
fi
chmod 755 "$images/locked"

# ---- revoked while connected ----
fed_start south || fail "south did not start again"
online() {
    fed_centre status --json >"$work/status.json"
    [[ $(fed_value "$work/status.json" sites_online) == "$1" ]]
}
fed_wait 20 online 2 || fail "south does not come back"
fed_centre sites revoke south --reason "machine stolen" >/dev/null || fail "revocation"
fed_wait 10 online 1 || fail "a revoked site stays connected"
not_admitted() {
    "$bin/isofed" status --dir "$work/south" --json >"$work/south.json"
    [[ $(fed_value "$work/south.json" link) == *"not admitted"* || $(fed_value "$work/south.json" link) == *revoked* ]]
}
fed_wait 20 not_admitted || fail "south does not say that it is not admitted: $(cat "$work/south.json")"
fed_round t1 || fail "no release without the revoked site"
fed_centre rounds list --json >"$work/rounds.json"
last=$(fed_field "$work/rounds.json" 'max(r["number"] for r in j["rounds"])')
fed_centre rounds show "$last" --json >"$work/round.json"
[[ $(fed_field "$work/round.json" '[u["site"] for u in j["updates"]]') == "['north']" ]] || fail "a revoked site takes part"
fed_centre audit verify >/dev/null || fail "the audit chain does not hold"
echo "S25_revoked_while_connected ok"
