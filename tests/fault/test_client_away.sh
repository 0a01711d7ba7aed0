# A site that was away for three releases follows the line of manifests back to the one it holds and
# takes the newest (S92, fast-forward); new images are seen without a restart (N1, step 8).
fed_quorum=1
. tests/federation.sh
fed_begin 1 north:t1 south:t1
fed_start centre || fail "the coordinator did not start"
for s in north south; do fed_enroll $s; fed_start $s || fail "$s did not start"; done

serves() { # SITE RELEASE
    for _ in $(seq 200); do
        [[ $(readlink "$work/$1/current" 2>/dev/null) == "releases/$2" ]] && return 0
        sleep 0.05
    done
    fail "$1 does not serve release $2"
}

fed_round t1 || fail "no release 1"
serves north 1
serves south 1
fed_stop south
sed -i 's/deadline: [^,]*/deadline: 5s/' "$work/centre/coordinator.yaml"
fed_stop centre
fed_start centre || fail "the coordinator did not start again"
for n in 2 3 4; do
    for _ in $(seq 400); do
        fed_centre status --json >"$work/sites.json"
        [[ $(fed_field "$work/sites.json" 'j["sites_online"] >= 1') == True ]] && break
        sleep 0.1
    done
    fed_round t1 || fail "no release $n"
    serves north "$n"
done
fed_start south || fail "south did not start again"
serves south 4

before=$("$bin/isofed" status --dir "$work/south" --json | fed_field - 'j["images"]')
class=$(ls "$work/tasks/t1/train" | head -n 1)
file=$(ls "$work/tasks/t1/train/$class" | head -n 1)
cp "$work/tasks/t1/train/$class/$file" "$work/tasks/t1/train/$class/new-$file"
for _ in $(seq 150); do
    now=$("$bin/isofed" status --dir "$work/south" --json | fed_field - 'j["images"]')
    [[ $now == $((before + 1)) ]] && break
    sleep 0.1
done
[[ $now == $((before + 1)) ]] || fail "a new image is not seen: $before, $now"
echo "ok"
