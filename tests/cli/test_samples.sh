# deploy/samples/ holds what `isofed init` writes today: sample configurations with every key, its
# default and a comment. Both are read back by the daemons' own readers.
set -euo pipefail
bin=${ISO_BIN:-$1}
work=$(mktemp -d /tmp/isofed-test-XXXXXX)
trap 'rm -rf "$work"' EXIT
"$bin/isofed" init coordinator "$work/c" --name acme --listen 0.0.0.0:7443 --advertise fl.example.org:7443 \
    --backbone /var/lib/isofed/backbone --quiet
"$bin/isofed" init client "$work/s" --backbone /var/lib/isofed/backbone --quiet
diff -u deploy/samples/coordinator.yaml "$work/c/coordinator.yaml"
diff -u deploy/samples/client.yaml "$work/s/client.yaml"
# A missing backbone is the first thing either misses: the configuration itself has no fault.
code=0
"$bin/isofed-coordinator" "$work/c" 2>"$work/err" || code=$?
[[ $code != 0 ]] && grep -q "backbone" "$work/err" && ! grep -q "yaml" "$work/err" || { cat "$work/err"; exit 1; }
echo "ok"
