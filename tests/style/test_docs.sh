# The pages agree with the tree: the table of docs/SECURITY.md with the names of the tests, links in
# README and docs with the files that are there, no place left to be filled in.
set -euo pipefail
python3 tools/security_table.py
bad=0
for page in README.md docs/*.md; do
    while read -r link; do
        [[ $link == http* || $link == '#'* ]] && continue
        [[ -e $(dirname "$page")/${link%%#*} ]] || { echo "$page: link to $link, which is not there"; bad=1; }
    done < <(grep -oE '\]\([^)]+\)' "$page" | sed 's/^](//; s/)$//')
done
if grep -nE '@@[A-Z]+@@' README.md docs/*.md; then bad=1; fi
exit $bad
