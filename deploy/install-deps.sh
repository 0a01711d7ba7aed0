#!/usr/bin/env bash
# install-deps.sh [GROUP...]   (default: build test demo)
# Installs the Debian packages of packages.txt that are missing. Without root it prints the one
# command to run and ends with 4.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
groups=${*:-build test demo}

wanted=()
while read -r name of; do
    [[ -z $name || $name == \#* ]] && continue
    for g in $groups; do
        [[ " $of " == *" $g "* ]] && { wanted+=("$name"); break; }
    done
done <"$here/packages.txt"

# A command that is already there from elsewhere (a newer node, say) is as good as its package.
there() {
    case $1 in
    nodejs) command -v node ;;
    npm | git | cmake | gcc | python3 | minisign) command -v "$1" ;;
    ninja-build) command -v ninja ;;
    *) [[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == 'install ok installed' ]] ;;
    esac >/dev/null
}

missing=()
for p in "${wanted[@]}"; do there "$p" || missing+=("$p"); done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $(id -u) -ne 0 ]]; then
    echo "install-deps: ${#missing[@]} packages are missing; run once:" >&2
    echo "  sudo apt-get install --no-install-recommends -y ${missing[*]}" >&2
    exit 4
fi
echo "install-deps: installing ${#missing[@]} packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# An old package list names files that are gone: one try with the list at hand, one with a new list.
try() { apt-get install --no-install-recommends -y "${missing[@]}" >"$log" 2>&1; }
try || { apt-get update >>"$log" 2>&1 && try; } || {
    tail -n 5 "$log" >&2
    echo "install-deps: apt-get could not install: ${missing[*]}" >&2
    exit 5
}
