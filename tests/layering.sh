#!/bin/bash
# Keeps the arrows between the rooms: layering.sh [ROOT] [TABLE]
#
# Reads the table (tools/layering.txt: "room: rooms", "!header: files", "~file: headers") and looks at
# every #include and #pragma omp of the .c and .h files below ROOT. Prints one line an offence.
# Exit code: 0 the arrows hold, 1 they do not, 2 the table is wrong.
set -u
root=${1:-.}
table=${2:-$root/tools/layering.txt}
[ -r "$table" ] || { echo "layering: cannot read $table" >&2; exit 2; }

list=$(mktemp) || exit 2
trap 'rm -f "$list"' EXIT
(cd "$root" && find . \( -name build -o -name demo-out -o -name node_modules -o -name '.?*' \) -prune \
    -o -type f \( -name '*.c' -o -name '*.h' \) -print) | sed 's|^\./||' | LC_ALL=C sort >"$list"

LC_ALL=C awk -v root="$root" -v table="$table" -v list="$list" '
function wrong_table(text) {
    print "layering: " table ": " text > "/dev/stderr"
    is_wrong = 1
    exit 2
}

# A glob as a regular expression: * and ? go over slashes too, [...] stays.
function regex(glob,    i, c, out, in_set) {
    out = "^"
    for (i = 1; i <= length(glob); i++) {
        c = substr(glob, i, 1)
        if (in_set) { out = out c; in_set = c != "]" }
        else if (c == "[") { out = out c; in_set = 1 }
        else if (c == "*") out = out ".*"
        else if (c == "?") out = out "."
        else if (c ~ /[a-zA-Z0-9_\/-]/) out = out c
        else out = out "[" c "]"
    }
    return out "$"
}

function matches(text, globs,    n, part, i) {
    n = split(globs, part, " ")
    for (i = 1; i <= n; i++)
        if (text ~ regex(part[i])) return 1
    return 0
}

function has_word(words, word) { return index(" " words " ", " " word " ") > 0 }
function offence(text) { print text; offences++ }
function exists(path,    line, status) {
    status = (getline line < path)
    close(path)
    return status >= 0
}

function read_table(    line, at, key, rest, n, number) {
    while ((getline line < table) > 0) {
        number++
        sub(/#.*/, "", line)
        gsub(/[ \t]+/, " ", line)
        sub(/^ /, "", line)
        sub(/ $/, "", line)
        if (line == "") continue
        at = index(line, ":")
        if (!at) wrong_table("line " number ": expected \"name: ...\"")
        key = substr(line, 1, at - 1)
        rest = substr(line, at + 1)
        sub(/^ /, "", rest)
        sub(/ $/, "", key)
        if (key ~ /^!/) only[substr(key, 2)] = rest
        else if (key ~ /^~/) pure[substr(key, 2)] = rest
        else { rooms[key] = rest; is_room[key] = 1 }
    }
}

function check_rooms(    room, n, target, i) {
    for (room in rooms) {
        n = split(rooms[room], target, " ")
        for (i = 1; i <= n; i++)
            if (target[i] != "*" && !(target[i] in is_room))
                wrong_table("\"" room "\" names an unknown room \"" target[i] "\"")
    }
}

function check_include(where, path, room, allowed, banned, text,
                       name, is_quoted, top, folder, header) {
    is_quoted = text ~ /^[ \t]*#[ \t]*include[ \t]*"/
    name = text
    sub(/^[ \t]*#[ \t]*include[ \t]*[<"]/, "", name)
    sub(/[>"].*/, "", name)
    top = index(name, "/") ? substr(name, 1, index(name, "/") - 1) : ""
    folder = path
    if (!sub(/\/[^\/]*$/, "", folder)) folder = "."
    if (("/" name "/") ~ /\/\.\.\//)
        offence(where ": \"" name "\": files are named from the root, not with ..")
    else if (top != "" && ((top in is_top) || (top in is_room))) {
        if (top != room && top != "include" && !has_word(allowed, "*") && !has_word(allowed, top))
            offence(where ": " room " may not include " name)
    } else if (is_quoted && top == "" && !exists(root "/" folder "/" name))
        offence(where ": \"" name "\": files are named from the root, \"room/" name "\"")
    if (banned != "" && matches(name, banned))
        offence(where ": a pure core may not include " name)
    if (top != "" && exists(root "/" name)) # our own core/yaml.h is not the <yaml.h> of a library
        return
    for (header in only) {
        if (name != header && substr("/" name, length(name) + 1 - length(header)) != "/" header)
            continue
        if (!matches(path, only[header]))
            offence(where ": " header " belongs to " only[header])
    }
}

function check_file(path,    room, allowed, banned, file, text, number, glob) {
    room = index(path, "/") ? substr(path, 1, index(path, "/") - 1) : ""
    if (room != "" && !(room in is_room))
        offence(path ": folder " room "/ has no row in the table")
    allowed = room in is_room ? rooms[room] : "*"
    banned = ""
    for (glob in pure)
        if (path ~ regex(glob)) banned = banned " " pure[glob]
    file = root "/" path
    while ((getline text < file) > 0) {
        number++
        if (text ~ /^[ \t]*#[ \t]*pragma[ \t]+omp[ \t]+/ && ("**omp**" in only)) {
            sub(/^[ \t]*#[ \t]*pragma[ \t]+omp[ \t]+/, "", text)
            if (text !~ /^simd([^a-zA-Z0-9_]|$)/ && !matches(path, only["**omp**"]))
                offence(path ":" number ": #pragma omp belongs to " only["**omp**"])
        } else if (text ~ /^[ \t]*#[ \t]*include[ \t]*[<"]/)
            check_include(path ":" number, path, room, allowed, banned, text)
    }
    close(file)
}

BEGIN {
    read_table()
    check_rooms()
    while ((getline path < list) > 0) {
        paths[++count] = path
        if (index(path, "/")) is_top[substr(path, 1, index(path, "/") - 1)] = 1
    }
    for (i = 1; i <= count; i++) check_file(paths[i])
    if (!offences) print "layering holds (" count " files)"
    exit offences ? 1 : 0
}
END { if (is_wrong) exit 2 }
'
