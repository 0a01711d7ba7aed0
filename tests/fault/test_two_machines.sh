# README's "Two real machines in ten minutes", command by command: the coordinator and two factories
# in network namespaces of their own, joined by a bridge, so that nothing but the one port can be
# used. Needs root and iproute2; else it says so.
. tests/federation.sh

if [[ $(id -u) != 0 ]] || ! command -v ip >/dev/null; then
    echo "skipped: namespaces need root and iproute2"
    exit 0
fi
tag=iso$$
names=("$tag-a" "$tag-b" "$tag-c")
drop_network() {
    local n
    for n in "${names[@]}"; do ip netns del "$n" 2>/dev/null || true; done
    ip link del "$tag" 2>/dev/null || true
}
trap 'fed_end; drop_network' EXIT
if ! ip netns add "${names[0]}" 2>/dev/null || ! ip netns exec "${names[0]}" true 2>/dev/null; then
    echo "skipped: this system allows no network namespaces"
    exit 0
fi
ip netns add "${names[1]}"
ip netns add "${names[2]}"
ip link add "$tag" type bridge
ip link set "$tag" up
for i in 0 1 2; do
    ip link add "$tag-$i" type veth peer name eth0 netns "${names[i]}"
    ip link set "$tag-$i" master "$tag" up
    ip -n "${names[i]}" addr add "10.0.0.$((i + 1))/24" dev eth0
    ip -n "${names[i]}" link set eth0 up
    ip -n "${names[i]}" link set lo up
done
on() { # a|b|c COMMAND...
    local i=$1
    shift
    ip netns exec "$tag-$i" env PATH="$bin:$PATH" "$@"
}
"$build/isofed-fixture" "$work" 1

# On A.
on a isofed init coordinator "$work/centre" --name acme --listen 0.0.0.0:7443 \
    --advertise 10.0.0.1:7443 --backbone "$work/backbone" >/dev/null
sed -i '/^tasks: \[\]$/d' "$work/centre/coordinator.yaml"
cat >>"$work/centre/coordinator.yaml" <<'Y'
tasks:
  - name: press
    classes: [a, b, c]
    sites: [plant-1, plant-2]
    quorum: 2
Y
on a isofed-coordinator "$work/centre" 2>"$work/centre.log" &
fed_pid[centre]=$!
fed_wait 20 test -S "$work/centre/admin.sock" || fail "the coordinator did not start"

# On B and on C.
i=0
for host in b c; do
    i=$((i + 1))
    site=plant-$i
    line=$(on a isofed token new --site $site --dir "$work/centre")
    on $host isofed init client "$work/$site" --backbone "$work/backbone" --data "press=$work/tasks/t1" >/dev/null
    on $host isofed enroll "$line" --dir "$work/$site" --name $site >/dev/null || fail "$site: enrolment"
    on $host isofed-client "$work/$site" --check >"$work/$site.check" || fail "$site: $(cat "$work/$site.check")"
    on $host isofed-client "$work/$site" 2>"$work/$site.log" &
    fed_pid[$site]=$!
    fed_wait 20 test -S "$work/$site/control.sock" || fail "$site did not start"
done
if on b timeout 2 bash -c 'exec 3<>/dev/tcp/10.0.0.3/7443' 2>/dev/null; then fail "a factory has an open port"; fi

# Back on A.
online() { [[ $(on a isofed sites --dir "$work/centre" --json | grep -o '"online": *true' | wc -l) == 2 ]]; }
fed_wait 30 online || fail "the sites are not online: $(on a isofed sites --dir "$work/centre")"
on a isofed rounds open --tasks press --dir "$work/centre" >/dev/null || fail "no round"
on a isofed rounds watch --dir "$work/centre" >"$work/watch.txt" || fail "watch: $(cat "$work/watch.txt")"
on a isofed status --dir "$work/centre" >/dev/null || fail "status of the centre"
on b isofed status --dir "$work/plant-1" >"$work/status.txt" || fail "status of plant-1"
grep -q press "$work/status.txt" || fail "no figures of the task: $(cat "$work/status.txt")"
for n in "${!fed_pid[@]}"; do fed_stop "$n"; done
echo "ok"
