#!/bin/sh
# knock.sh: knock for access with a POSIX shell and curl alone.
#
# The key comes from KNOCK_API_KEY or a file that only its owner can read, and goes to curl on standard
# input: it is in no argument, so no process list shows it. ~/.curlrc is not read, since a "verbose" there
# would print the key; proxies and certificates come from the environment (https_proxy, CURL_CA_BUNDLE).
# Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach the API.
set -eu
LC_ALL=C
export LC_ALL

usage() {
    cat <<'END'
usage: knock.sh [open] [TARGET...] [--for 8h] [--reason TEXT] [--source CIDR] [--renews ID]
       knock.sh ls [--all]
       knock.sh show ID
       knock.sh revoke ID... [--reason TEXT]
       knock.sh whoami

open and revoke print a line a grant; show and whoami print the API's JSON as it is, and ls all of its pages as
one. "open" may be left out, unless a target is named like a command.

Each knock is a grant of its own. knock.sh keeps no record of what it opened, so it renews nothing by itself:
--renews ID names an own grant that ends once the new one is open. What another grant of the same key keeps open
is said on standard error, of an address that has no more than 100 live grants.

  KNOCK_URL        the API's URL, https://HOST/STAGE     (or the file ~/.config/knock/url)
  KNOCK_API_KEY    the key       (or KNOCK_KEY_FILE, or the file ~/.config/knock/key, mode 0600)

examples:
  knock.sh bastion --for 8h --reason 'on call'
  knock.sh revoke alice_203-0-113-7_20261123T211719Z_1a2b3c4d5e6f7081
END
}

say() { printf 'knock.sh: %s\n' "$*" >&2; }
misused() {
    say "$*"
    say "see: knock.sh --help"
    exit 2
}

# --- what to call, and with what key

find_access() {
    folder=${XDG_CONFIG_HOME:-${HOME:-}/.config}/knock
    url=${KNOCK_URL:-}
    if [ -z "$url" ] && [ -f "$folder/url" ]; then
        IFS= read -r url <"$folder/url" || :
    fi
    [ -n "$url" ] || misused "set KNOCK_URL to the API's URL, or write it to $folder/url"
    url=${url%/}
    url=${url%/knock}
    case $url in
    *[!!-~]* | *\"* | *\\* | *\?* | *'#'* | *@*) misused "KNOCK_URL is only https://HOST/STAGE" ;;
    https://?* | http://127.0.0.1[:/]* | http://localhost[:/]* | 'http://[::1]'[:/]*) ;;
    *) misused "KNOCK_URL must start with https://: anything else would show the key to the network" ;;
    esac

    key=${KNOCK_API_KEY:-}
    unset KNOCK_API_KEY # curl needs no copy of it in its environment
    if [ -z "$key" ]; then
        file=${KNOCK_KEY_FILE:-$folder/key}
        [ -f "$file" ] || misused "set KNOCK_API_KEY, or write the key to $file and chmod 600 it"
        # shellcheck disable=SC2012 # a mode has no portable reader but ls; the name is not parsed
        case $(ls -ldL -- "$file" | cut -c 5-10) in
        ------) ;;
        *) misused "$file can be read or changed by others; close it with: chmod 600 $file" ;;
        esac
        IFS= read -r key <"$file" || :
    fi
    case $key in
    '') misused "the API key is empty" ;;
    *[!!-~]* | *\"* | *\\*) misused "the API key holds a character that no key has" ;;
    esac
}

# call METHOD PATH [BODY]: sets $status and $answer. Redirects are not followed: the key is for one host.
call() {
    method=$1 path=$2
    shift 2
    [ $# = 0 ] || set -- --header 'content-type: application/json' --data-raw "$1"
    # -q must come first: it keeps ~/.curlrc out.
    if ! answer=$(
        printf 'header = "x-api-key: %s"\n' "$key" |
            curl -q --config - --silent --show-error --proto '=https,http' --connect-timeout 10 \
                --max-time 35 --header 'accept: application/json' --write-out '\n%{http_code}' \
                --request "$method" "$@" --url "$url$path"
    ); then
        say "cannot reach the API at $url"
        case $method in
        POST) say "whether it was done is not known: look with knock.sh ls; another knock opens one beside it" ;;
        DELETE) say "whether it was done is not known: look with knock.sh ls, or do it again" ;;
        esac
        exit 3
    fi
    status=${answer##*"
"}
    answer=${answer%"
"*}
    case $status$answer in
    2??'{'*'}') ;; # JSON, as the API answers
    2??*)
        say "$url answered with something that is not from the Knock API; does a hotspot want a login?"
        exit 3
        ;;
    *) refused ;;
    esac
}

refused() {
    case $answer in
    *'"detail"'* | *'"title"'*)
        say "$(field title): $(field detail)"
        maybe=$(field grant_id)
        [ -z "$maybe" ] || say "it may be open all the same: look with knock.sh ls, end it with knock.sh revoke $maybe"
        case $(field type) in
        *:too-many-grants) say "end one with knock.sh revoke ID, or take the place of one with --renews ID" ;;
        *:source-full) say "grants of this source, yours or others', must end first: knock.sh ls shows yours" ;;
        *:target-gone) say "knock.sh whoami shows what you may open now" ;;
        esac
        ;;
    *'"Forbidden"'*) say "the key is not accepted: it is wrong, disabled or another API's" ;;
    *'"Missing Authentication Token"'*)
        say "$url is not the Knock API: no such route there. Is the stage (like /prod) missing?"
        exit 3
        ;;
    *'"message"'*) say "the gateway says: $(field message) ($status)" ;;
    *)
        say "$url answered $status with something that is not from the Knock API"
        exit 3
        ;;
    esac
    exit 1
}

# --- JSON, as much as is needed

# Print every scalar of the JSON in $answer as "path value", one a line: targets.0.name bastion.
# Strings stay escaped, except for \" \\ and \/, so no control character comes out.
scalars() {
    printf '%s\n' "$answer" | awk '
    { text = text $0 " " }
    END {
        depth = 0; n = length(text)
        for (i = 1; i <= n; i++) {
            c = substr(text, i, 1)
            if (c == "\"") {
                value = ""
                for (i++; i <= n; i++) {
                    c = substr(text, i, 1)
                    if (c == "\"") break
                    if (c == "\\") {
                        i++; c = substr(text, i, 1)
                        if (c != "\"" && c != "\\" && c != "/") c = "\\" c
                    }
                    value = value c
                }
                if (list[depth] || wanted[depth]) { show(value); wanted[depth] = 0 }
                else key[depth] = value
            }
            else if (c == "{" || c == "[") { depth++; list[depth] = (c == "["); key[depth] = 0; wanted[depth] = 0 }
            else if (c == "}" || c == "]") { depth--; wanted[depth] = 0 }
            else if (c == ":") wanted[depth] = 1
            else if (c == ",") { if (list[depth]) key[depth]++; else wanted[depth] = 0 }
            else if (c ~ /[-0-9a-z]/) {
                value = ""
                while (c ~ /[-+.0-9A-Za-z]/) { value = value c; i++; c = substr(text, i, 1) }
                i--; show(value)
            }
        }
    }
    function show(value,   path, d) {
        path = key[1]
        for (d = 2; d <= depth; d++) path = path "." key[d]
        print path " " value
    }'
}

# field PATH: its value in $answer, or nothing.
field() { scalars | sed -n "s/^$1 //p" | sed 1q; }

# Print the inside of the list "grants" in $answer on one line, and ":" with the cursor on the next; nothing when
# there is no such list. All of it stays as the API wrote it. A record is what stands between two quotes, so that
# no string has to be read character by character: pages are long.
page() {
    printf '%s\n' "$answer" | awk '
    BEGIN { RS = "\"" }
    inside {
        string = string $0
        if (match($0, /\\+$/) && RLENGTH % 2) { string = string "\""; next } # an escaped quote ends no string
        inside = 0
        if (taking) printf "\"%s\"", string
        else if (depth == 1 && !wanted) name = string
        else if (depth == 1 && name == "cursor") cursor = string
        next
    }
    {
        for (i = 1; i <= length($0); i++) {
            c = substr($0, i, 1)
            if (c == "{" || c == "[") {
                depth++
                if (depth == 2 && c == "[" && name == "grants") { taking = found = 1; continue }
            }
            else if (c == "}" || c == "]") { depth--; if (depth == 1) taking = 0 }
            else if (depth == 1 && c == ":") wanted = 1
            else if (depth == 1 && c == ",") wanted = 0
            if (taking) printf "%s", (c == "\n" ? " " : c)
        }
        inside = 1; string = ""
    }
    END { if (found) printf "\n:%s\n", cursor }'
}

# Print a text as a JSON string. Control characters are refused before this.
quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; 1s/^/"/; $s/$/"/'; }

# Print a text as a part of a URL. Everything but letters, digits and - . _ ~ is escaped, byte by byte.
escaped() {
    rest=$1
    while [ -n "$rest" ]; do
        first=${rest%"${rest#?}"}
        rest=${rest#?}
        case $first in
        [A-Za-z0-9._~-]) printf '%s' "$first" ;;
        *) printf '%s' "$first" | od -An -tx1 | tr -d ' \n' | sed 's/../%&/g' ;;
        esac
    done
}

# --- the commands

open_targets() {
    body=
    if [ -n "$targets" ]; then body="\"targets\":[$targets]"; fi
    if [ -n "$duration" ]; then body="$body${body:+,}\"duration\":$(quoted "$duration")"; fi
    if [ -n "$source" ]; then body="$body${body:+,}\"source\":$(quoted "$source")"; fi
    if [ -n "$reason" ]; then body="$body${body:+,}\"reason\":$(quoted "$reason")"; fi
    if [ -n "$renews" ]; then body="$body${body:+,}\"renews\":$(quoted "$renews")"; fi
    call POST /knock "{$body}"
    grant=$(field id)
    tries=0
    while [ "$(field status)" = pending ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ]; then
            say "grant $grant is still pending after a minute"
            exit 1
        fi
        sleep 1
        call GET "/grants/$(escaped "$grant")"
    done
    if [ "$(field status)" != active ]; then
        say "grant $grant is $(field status)"
        exit 1
    fi
    names=$(scalars | sed -n 's/^targets\.[0-9]*\.name //p' | tr '\n' ' ')
    printf 'open: %s from %s until %s (%s s left), grant %s\n' \
        "${names% }" "$(field source)" "$(field expires_at)" "$(field seconds_left)" "$grant"
    named=$renews
    others sooner "this ends sooner than what is open already: "
}

# others KIND WORDS: say, after the words, which other grants of the same principal and source are open to the
# targets of the grant in $answer: to any of them (KIND is "any"), or to all and for longer ("sooner"). Those in
# $named end by this very command. That the API cannot tell fails nothing: what was asked for is done.
others() {
    this=$(scalars)
    path="/grants?limit=100&source=$(escaped "$(field source)")"
    (
        call GET "$path" 2>/dev/null
        { printf '%s\n' "$this" && echo "the others" && scalars; } | awk -v kind="$1" -v named=" $named " '
        /^the others$/ { rest = 1; next }
        { path = $1; value = substr($0, length(path) + 2); split(path, part, ".") }
        !rest && part[1] == "targets" && part[3] == "name" { wanted[value] = 1; n++ }
        !rest { mine[path] = value; next }
        part[1] != "grants" { next }
        { k = part[2]; if (k >= count) count = k + 1 }
        part[3] == "targets" && part[5] == "name" { if (value in wanted) shared[k]++; next }
        { at = part[3] (part[4] == "" ? "" : "." part[4]); its[k, at] = value }
        END {
            for (k = 0; k < count; k++) {
                if (its[k, "id"] == mine["id"] || index(named, " " its[k, "id"] " ")) continue
                if (its[k, "status"] != "active" || its[k, "principal.id"] != mine["principal.id"]) continue
                if (kind == "any" ? !shared[k] : shared[k] < n) continue
                if (kind == "sooner" && its[k, "expires_at"] <= mine["expires_at"]) continue
                print "still open until " its[k, "expires_at"] " by " its[k, "id"]
            }
        }'
    ) | while IFS= read -r line; do say "$2$line"; done
}

# All pages as one, in the shape of the API's answer. Nothing is printed before the last is there, so that what is
# printed is whole. Should there be more than 100 pages, the cursor says so, as the API's does, and so does exit
# code 1.
list_grants() {
    grants='' after='' pages=0 most=100
    while [ "$pages" -lt "$most" ]; do
        pages=$((pages + 1))
        call GET "/grants?limit=100${all:+&status=all}${after:+&cursor=$(escaped "$after")}"
        list=$(page)
        case $list in
        *:*) ;;
        *)
            say "$url answered with something that is not from the Knock API"
            exit 3
            ;;
        esac
        after=${list##*"
":}
        list=${list%"
":*}
        case $list in
        *[!\ ]*) grants="$grants${grants:+, }$list" ;;
        esac
        [ -n "$after" ] || break
    done
    if [ -z "$after" ]; then
        printf '{"grants": [%s], "cursor": null}\n' "$grants"
        return
    fi
    printf '{"grants": [%s], "cursor": "%s"}\n' "$grants" "$after"
    say "there are more grants than these, which are the newest"
    exit 1
}

# A refusal of one does not keep the others open; without an answer there is no point in going on.
revoke_ids() {
    worst=0 named="$*"
    for id in "$@"; do
        path="/grants/$(escaped "$id")"
        [ -z "$reason" ] || path="$path?reason=$(escaped "$reason")"
        code=0
        (
            call DELETE "$path"
            printf '%s: %s\n' "$(field status)" "$id"
            others any ""
        ) || code=$?
        [ "$code" -lt 3 ] || exit "$code"
        [ "$code" = 0 ] || worst=$code
    done
    exit "$worst"
}

main() {
    command=open
    case ${1:-} in
    open | ls | show | revoke | whoami)
        command=$1
        shift
        ;;
    esac
    targets='' duration='' reason='' source='' renews='' all='' words=0
    # Words that are no options are put back behind the others: after the loop they are all that is left.
    count=$#
    while [ "$count" -gt 0 ]; do
        word=$1
        shift
        count=$((count - 1))
        case $word in
        -h | --help)
            usage
            exit 0
            ;;
        --for | --reason | --source | --renews)
            [ "$count" -gt 0 ] || misused "$word wants a value"
            check_text "$1"
            case $command$word in
            open--for) duration=$1 ;;
            open--source) source=$1 ;;
            open--renews) renews=$1 ;;
            open--reason | revoke--reason) reason=$1 ;;
            *) misused "$command takes no $word" ;;
            esac
            shift
            count=$((count - 1))
            ;;
        --all)
            [ "$command" = ls ] || misused "$command takes no $word"
            all=yes
            ;;
        -*) misused "there is no option $word" ;;
        *)
            check_text "$word"
            targets="$targets${targets:+,}$(quoted "$word")"
            words=$((words + 1))
            set -- "$@" "$word"
            ;;
        esac
    done
    case $command$words in
    open* | ls0 | whoami0 | show1 | revoke[1-9]*) ;;
    show* | revoke*) misused "$command wants the id of a grant; knock.sh ls shows them" ;;
    *) misused "$command takes no $1" ;;
    esac
    find_access
    case $command in
    open) open_targets ;;
    ls) list_grants ;;
    show)
        call GET "/grants/$(escaped "$1")"
        printf '%s\n' "$answer"
        ;;
    revoke) revoke_ids "$@" ;;
    whoami)
        call GET /whoami
        printf '%s\n' "$answer"
        ;;
    esac
}

check_text() {
    case $1 in
    '') misused "an empty word was given" ;;
    *[[:cntrl:]]*) misused "a control character was given" ;;
    esac
}

main "$@"
