#!/usr/bin/env python3
"""security_table.py [--write]: which test shows which requirement.

Collects names like S40_every_byte_... from tests/ and puts the table into docs/SECURITY.md, between
its two markers. Without --write it only compares: exit 1 when the page is behind the tests."""
import collections
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, 'docs', 'SECURITY.md')
BEGIN, END = '<!-- table: tools/security_table.py --write -->', '<!-- end of table -->'
NAME = re.compile(r'\b(S\d+)_((?:\d+_)?[A-Za-z][A-Za-z0-9_]*)')


def collect():
    shown = collections.defaultdict(set)
    for folder, _, files in os.walk(os.path.join(ROOT, 'tests')):
        for name in files:
            if not name.endswith(('.c', '.sh')):
                continue
            path = os.path.join(folder, name)
            with open(path, errors='replace') as text:
                for number, _ in NAME.findall(text.read()):
                    shown[number].add(os.path.relpath(path, os.path.join(ROOT, 'tests')))
    return shown


def table(shown):
    rows = ['| requirement | shown by (below `tests/`) |', '|---|---|']
    for number in sorted(shown, key=lambda s: int(s[1:])):
        rows.append(f'| {number} | {", ".join(f"`{p}`" for p in sorted(shown[number]))} |')
    return '\n'.join(rows)


def main():
    with open(PAGE) as f:
        page = f.read()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    fresh = f'{head}{BEGIN}\n{table(collect())}\n{END}{tail}'
    if '--write' in sys.argv:
        with open(PAGE, 'w') as f:
            f.write(fresh)
    elif fresh != page:
        print('docs/SECURITY.md is behind the tests: run tools/security_table.py --write')
        sys.exit(1)


main()
