# Figures over HTTP (S62, T16): off unless configured, loopback only, GET of one page, own Host and
# Origin only; the numbers are those of the status; nothing of it changes the daemon.
. tests/federation.sh
fed_begin 1 north:t1
fed_start centre || fail "centre did not start"
[[ ! -e $work/centre/metrics ]] || fail "figures without having been asked for"
fed_stop centre
code=0
cp "$work/centre/coordinator.yaml" "$work/plain.yaml"
echo "metrics: 0.0.0.0:0" >>"$work/centre/coordinator.yaml"
timeout 20 "$bin/isofed-coordinator" "$work/centre" 2>"$work/err" || code=$?
[[ $code == 2 ]] && grep -q "not loopback" "$work/err" || fail "open to the world: $code $(cat "$work/err")"
cp "$work/plain.yaml" "$work/centre/coordinator.yaml"
echo "metrics: 127.0.0.1:0" >>"$work/centre/coordinator.yaml"
fed_start centre || fail "centre did not start with figures"
fed_enroll north
fed_start north || fail "north did not start"
fed_round t1 || fail "no release"

python3 - "$(<"$work/centre/metrics")" <<'PY' || fail "S62"
import re, socket, sys
host, port = re.match(r'http://([\d.]+):(\d+)/metrics$', sys.argv[1]).groups()
def ask(lines, body=b'', is_whole=True):
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall('\r\n'.join(lines).encode() + b'\r\n\r\n' + body)
        got = b''
        while part := s.recv(65536):
            got += part
            if not is_whole:
                break
    return got.decode()
own, close = f'Host: {host}:{port}', 'Connection: close'
rows = [
    ('the page', ['GET /metrics HTTP/1.1', own, close], 200),
    ('own origin', ['GET /metrics HTTP/1.1', own, f'Origin: http://{host}:{port}', close], 200),
    ('by name', ['GET /metrics HTTP/1.1', f'Host: localhost:{port}', close], 200),
    ('another name', ['GET /metrics HTTP/1.1', 'Host: evil.example', close], 403),
    ('another port', ['GET /metrics HTTP/1.1', f'Host: {host}:1', close], 403),
    ('foreign page', ['GET /metrics HTTP/1.1', own, 'Origin: http://evil.example', close], 403),
    ('no such page', ['GET / HTTP/1.1', own, close], 404),
    ('way up', ['GET /../state.db HTTP/1.1', own, close], 404),
    ('a change', ['POST /metrics HTTP/1.1', own, 'Content-Length: 3', close], 405),
]
for name, lines, want in rows:
    text = ask(lines, b'abc' if lines[0].startswith('POST') else b'', want == 200)
    code = int(text.split()[1])
    assert code == want, f'{name}: {code}, expected {want}'
    if want == 200:
        assert "default-src 'self'" in text and 'nosniff' in text, name
page = ask(rows[0][1])
values = dict(l.split() for l in page.split('\r\n\r\n', 1)[1].splitlines() if l and l[0] != '#')
for key, want in (('release', 1), ('sites', 1), ('peers', 1), ('updates_used_total', 2), ('updates_pending', 0)):
    assert float(values['isofed_' + key]) == want, f'{key}: {values["isofed_" + key]}'
assert float(values['isofed_resident_bytes']) > 1e6 and float(values['isofed_commits_total']) > 5
# Half a request and an endless header hold nobody up.
long = socket.create_connection((host, int(port)))
long.sendall(b'GET /metrics HTTP/1.1\r\nX: ' + b'y' * 40000)
idle = [socket.create_connection((host, int(port))) for _ in range(20)]
for s in idle:
    s.sendall(b'GET /met')
assert ask(rows[0][1]).startswith('HTTP/1.1 200')
PY
fed_centre status --json >/dev/null || fail "the daemon was disturbed"
echo "S62_figures_stay_on_this_machine ok"
