#!/bin/sh
# knock.sh: knock for access with a POSIX shell and curl alone.
#
# The key comes from KNOCK_API_KEY or a file, and is passed to curl on standard input: as an argument it would be
# in process lists. ~/.curlrc is not read, since "verbose" there would print the key; proxies and certificates come
# from the environment (https_proxy, CURL_CA_BUNDLE). An http URL, which must be of this machine, is called without
# a proxy, which would get the key in clear text.
#
# A key file that others can write is refused, since they could replace the key. One that others can read is used,
# with a warning: container platforms mount secrets as links to files that all may read (0444, 0644), and a refusal
# would only lead to copies of the key.
#
# Text of an answer is printed without control characters, and on a terminal without bytes that are not ASCII: the
# answer may come from a hotspot, or from a hostile server.
# Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach the API, 4 no room now. Of run: the command's.
set -eu
LC_ALL=C
export LC_ALL

# The number of a closed stream would go to a pipe of this script, whose programs then fail.
(: 3<&0) 2>/dev/null || exec </dev/null
(: >&2) || exec 2>/dev/null

usage() {
    cat <<'END'
usage: knock.sh [open] [TARGET...] [--for 8h] [--reason TEXT] [--source CIDR] [--renews ID] [--wait 5m]
       knock.sh run [TARGET...] [--for 1h] [--reason TEXT] [--source CIDR] [--wait 5m] -- COMMAND...
       knock.sh ls [--all]
       knock.sh show ID
       knock.sh revoke [ID... | --all | --marked TEXT] [--reason TEXT]
       knock.sh whoami
options of every command: --json, -q or --quiet (ids only), -4 and -6 (call over IPv4, IPv6)

open and revoke print a line a grant; show and whoami print the API's JSON as it is, and ls all of its pages as
one. "open" may be left out, unless a target is named like a command.

run opens, runs the command with the terminal and the signals passed on, and ends what it opened, however the
command ends; its exit code is the command's. Should run itself be killed, the grant ends at its own end.

Each knock is a grant of its own: --renews ID names an own grant that ends once the new one is open. revoke
without an ID ends what was opened from here by hand: not with run, --quiet or --json, which are jobs' and end by
id. What another grant of the same key keeps open is said on standard error, of an address that has no more than
100 live grants. --wait tries again for so long while there is no room. revoke --marked TEXT ends the key's own live
grants whose reason ends with TEXT: so a job that lost the answer to its knock ends what it may have opened.

  KNOCK_URL        the API's URL, https://HOST/STAGE     (or the file ~/.config/knock/url)
  KNOCK_API_KEY    the key       (or KNOCK_KEY_FILE, or the file ~/.config/knock/key, mode 0600)

exit codes: 0 done, 1 refused or failed, 2 used wrongly, 3 the API cannot be reached, 4 no room now

examples:
  knock.sh bastion --for 8h --reason 'on call'
  knock.sh run bastion --for 1h --reason deploy -- ./deploy.sh
  knock.sh revoke alice_203-0-113-7_20261123T211719Z_1a2b3c4d5e6f7081
END
}

# say TEXT: print a line to standard error. A failure is ignored.
say() { printf 'knock.sh: %s\n' "$*" | printable >&2 || :; }

# note TEXT: print a remark, but not with --quiet or --json.
note() { [ -n "$json$quiet" ] || say "$*"; }

# fail CODE NAME TEXT [MEMBERS]: exit with an error, which is JSON with --json.
fail() {
    if [ -n "$json" ]; then
        printf '{"error": "%s", "exit_code": %s, "detail": %s%s}\n' "$2" "$1" "$(quoted "$3")" "${4:-}" | printable >&2 || :
    else
        say "$3"
    fi
    exit "$1"
}

misused() {
    [ -n "$json" ] || trap 'say "see: knock.sh --help"' EXIT
    fail 2 UsageError "$1"
}

misconfigured() { fail 2 ConfigurationError "$1"; }

# Remove control characters, and print ? for bytes that are not ASCII.
printable() { tr -d '\000-\010\013-\037\177' | tr '\200-\377' '?'; }

# Print the API's JSON: to a terminal in safe characters, else unchanged.
print_json() {
    if [ -t 1 ]; then printf '%s\n' "$1" | printable; else printf '%s\n' "$1"; fi
}

# --- the URL and the key

find_access() {
    folder=${XDG_CONFIG_HOME:-${HOME:-}/.config}/knock
    stored=''
    if [ -f "$folder/url" ]; then
        IFS= read -r stored <"$folder/url" || :
    fi
    [ -n "${KNOCK_URL-unset}" ] || misconfigured "KNOCK_URL is empty: is it set where this runs?"
    url=${KNOCK_URL:-$stored}
    [ -z "$stored" ] || guard "$folder/url"
    [ -n "$url" ] || misconfigured "set KNOCK_URL to the API's URL, or write it to $folder/url"
    url=$(bare "$url")
    case $url in
    *[!!-~]* | *\"* | *\\* | *\?* | *'#'* | *@*) misconfigured "KNOCK_URL is only https://HOST/STAGE" ;;
    https://?* | http://127.0.0.1[:/]* | http://localhost[:/]* | 'http://[::1]'[:/]*) ;;
    *) misconfigured "KNOCK_URL must start with https://: anything else would show the key to the network" ;;
    esac

    key=${KNOCK_API_KEY:-} given=${KNOCK_API_KEY:-}
    if [ -z "$key" ]; then
        if [ -n "${KNOCK_KEY_FILE:-}" ]; then
            file=$KNOCK_KEY_FILE
            [ -f "$file" ] || misconfigured "KNOCK_KEY_FILE is $file, and there is no such file"
            if is_stored "$file"; then check_home; fi
        else
            [ -n "${KNOCK_API_KEY-unset}" ] ||
                misconfigured "KNOCK_API_KEY is empty: is the secret given to this job? (Forks are given none.)"
            [ -n "${KNOCK_KEY_FILE-unset}" ] || misconfigured "KNOCK_KEY_FILE is empty: is it set where this runs?"
            file=$folder/key
            [ -f "$file" ] || misconfigured "set KNOCK_API_KEY, or write the key to $file and chmod 600 it"
            check_home
        fi
        guard "$file"
        # shellcheck disable=SC2012 # see guard
        case $(ls -ldL -- "$file" | cut -c 5-10) in
        r????? | ???r??) note "others on this machine can read the key in $file; if it is yours: chmod 600 $file" ;;
        esac
        IFS= read -r key <"$file" || :
        key=${key%"$(printf '\r')"} # of a file from Windows
        [ -n "$key" ] || misconfigured "$file is empty: the key is missing"
    fi
    case $key in
    *[!!-~]* | *\"* | *\\*) misconfigured "the API key holds a character that no key has" ;;
    esac
    unset KNOCK_API_KEY # started programs need no copy; run restores it for its command
}

# check_home: exit with an error if the key in $file is stored, and so for one URL, and $url is another.
check_home() {
    [ "$url" = "$(bare "$stored")" ] || misconfigured "KNOCK_URL is $url, and the key in $file is for ${stored:-the URL in $folder/url, where there is none}: it is not sent elsewhere. Set KNOCK_API_KEY too"
}

# is_stored FILE: whether it, or a link on the way to it, is in the folder of the stored key. The file exists.
is_stored() {
    kept=$(cd -P -- "$folder/" 2>/dev/null && pwd -P) || return 1
    at=$1
    while :; do
        case $at in
        /*) ;;
        *) at=./$at ;; # with CDPATH, cd would look elsewhere
        esac
        place=$(cd -P -- "${at%/*}/" 2>/dev/null && pwd -P) || return 1
        case $place/ in
        "$kept"/*) return 0 ;;
        esac
        [ -L "$at" ] || return 1
        link=$(readlink -- "$at") || return 0 # the safe side
        case $link in
        /*) at=$link ;;
        *) at=$place/$link ;;
        esac
    done
}

# bare URL: print it without a slash or /knock at its end.
bare() {
    set -- "${1%/}"
    set -- "${1%/knock}"
    printf '%s' "$1"
}

# guard FILE: exit with an error if other users can write it. Links are followed.
guard() {
    [ -r "$1" ] || misconfigured "$1 cannot be read by this user"
    # ls is the only portable way to read mode and owner; the file's name is not parsed.
    # shellcheck disable=SC2012
    owner=$(ls -ldLn -- "$1" | awk '{ print $3; exit }')
    # shellcheck disable=SC2012
    case $(ls -ldL -- "$1" | cut -c 5-10) in
    ?w???? | ????w?) misconfigured "$1 can be changed by others; close it with: chmod 600 $1" ;;
    esac
    [ "$owner" = 0 ] || [ "$owner" = "$(id -u)" ] || misconfigured "$1 belongs to another user, who can change it"
}

# Print the header with the key, for curl's standard input. If printf is no builtin, as in mksh and so on Android, the
# key would be in its arguments: then a here-document is used. Else it is not, since some shells write those to files.
key_header() {
    case $(command -v printf) in
    printf) printf 'header = "x-api-key: %s"\n' "$key" ;;
    *)
        cat <<END
header = "x-api-key: $key"
END
        ;;
    esac
}

# request METHOD PATH [BODY]: call the API; sets $status and $answer. Redirects are not followed: the key is for one
# host.
request() {
    method=$1 path=$2 proxies=''
    shift 2
    case $url in
    http:*) proxies=none ;;
    esac
    [ $# = 0 ] || set -- --header 'content-type: application/json' --data-raw "$1"
    # -q, which ignores ~/.curlrc, must be first. curl's errors may quote the server, so they are made printable.
    answer=$(
        [ -z "$uninterrupted" ] || trap '' HUP INT TERM
        {
            {
                key_header |
                    curl -q --config - ${family:+"$family"} --silent --show-error --proto '=https,http' ${proxies:+--noproxy '*'} \
                        --connect-timeout 10 --max-time "$patience" --max-filesize 8000000 \
                        --header 'accept: application/json' --write-out '\n%{http_code}' \
                        --request "$method" "$@" --url "$url$path" 2>&1 >&4 4>&- ||
                    printf '\nfailed %s' "$?" >&4
            } | if [ -n "$json" ]; then cat >/dev/null; else printable >&2; fi
        } 4>&1 | tr -d '\000-\010\013-\037\177'
    ) || : # after an interruption, mksh would exit before the trap
    status=${answer##*"
"}
    answer=${answer%"
"*}
    case $status in
    2?? | 3?? | 4?? | 5??) ;;
    *) unreached ;;
    esac
    case $status$answer in
    2??'{'*'}') ;; # JSON, as the API answers
    2??*) not_knock "with something that is not from the Knock API; does a hotspot want a login?" ;;
    esac
}

unreached() {
    case $status$method in
    *GET | failed\ [567][A-Z]*) fail 3 CannotReach "cannot reach the API at $url" ;; # 5, 6 and 7: no connection
    *POST) set -- "another knock opens one beside it" ;;
    *) set -- "or do it again" ;;
    esac
    fail 3 AnswerLost "cannot reach the API at $url; whether it was done is not known: look with knock.sh ls; $1"
}

# not_knock WORDS: exit with the error for an answer that is not the Knock API's.
not_knock() { fail 3 UnexpectedAnswer "$url answered $1$(unsure)"; }

# unsure: print what may be open after an answer of a proxy, or of the gateway in place of a function.
unsure() {
    case $method$status in
    POST2?? | POST5??)
        printf '%s' "; whether something is open now is not known: look with knock.sh ls, end it with knock.sh revoke ID; another knock opens one beside it"
        ;;
    esac
}

# call METHOD PATH [BODY]: as request, but exit with an error if the API refuses.
call() {
    request "$@"
    case $status in
    2??) ;;
    *) refused ;;
    esac
}

# no_room: whether the answer is that there is no room in a pool, for a source or for a key, until grants end.
no_room() {
    [ "$status" = 409 ] || return 1
    case $(field type) in
    *:pool-exhausted | *:source-full | *:too-many-grants) ;;
    *) return 1 ;;
    esac
}

# may_retry: whether the same knock may succeed later, and has certainly opened nothing.
may_retry() {
    case $status in
    429) [ -z "$(field grant_id)" ] ;;
    503)
        case $answer in
        *'"title"'* | *'"message"'*) [ -z "$(field grant_id)" ] ;;
        *) return 1 ;; # of a proxy: the API may have got the knock
        esac
        ;;
    *) no_room ;;
    esac
}

# Print the name of the error that the Python client has for a problem.
problem() {
    case $status in
    429) echo Throttled ;;
    5??) echo Unavailable ;;
    *) field type | awk -F : '{ n = split($NF, word, "-"); for (i = 1; i <= n; i++)
        printf "%s%s", toupper(substr(word[i], 1, 1)), substr(word[i], 2) }' | tr -cd 'A-Za-z' ;;
    esac
}

refused() {
    code=1 maybe=$(field grant_id)
    if no_room; then code=4; fi
    if [ -n "$uninterrupted" ] && plain_id "$maybe"; then grant=$maybe; fi # run ends what may be open
    case $answer in
    *'"detail"'* | *'"title"'*)
        if [ -n "$json" ]; then
            printf '{"status": %s, "error": "%s", "exit_code": %s%s}\n' "$status" "$(problem)" "$code" \
                "$(members type title detail field right grant_id)" | printable >&2 || :
            exit "$code"
        fi
        say "$(field title): $(field detail)"
        case $maybe in
        '') ;;
        -*) maybe=ID ;; # in the command that is printed, it would be an option
        *) plain_id "$maybe" || maybe=ID ;;
        esac
        [ -z "$maybe" ] || say "it may be open all the same: look with knock.sh ls, end it with knock.sh revoke $maybe"
        case $(field type) in
        *:pool-exhausted) say "another grant must end first: --wait 5m tries for so long" ;;
        *:too-many-grants) say "end one with knock.sh revoke ID, or take the place of one with --renews ID" ;;
        *:source-full) say "grants of this source, yours or others', must end first: knock.sh ls shows yours" ;;
        *:target-gone) say "knock.sh whoami shows what you may open now" ;;
        esac
        exit "$code"
        ;;
    *'"Forbidden"'*) fail 1 KeyRejected "the key is not accepted: it is wrong, disabled or another API's" ", \"status\": $status" ;;
    *'"Missing Authentication Token"'*)
        fail 3 UnexpectedAnswer "$url is not the Knock API: no such route there. Is the stage (like /prod) missing?"
        ;;
    *'"message"'*)
        name=Refusal
        [ "$status" != 429 ] || name=Throttled
        case $status in 5??) name=Unavailable ;; esac
        case $status in
        503) doubt='' ;; # nothing was asked
        *) doubt=$(unsure) ;;
        esac
        fail 1 "$name" "the gateway says: $(field message) ($status)$doubt" ", \"status\": $status"
        ;;
    *) not_knock "$status with something that is not from the Knock API" ;;
    esac
}

# plain_id ID: whether it is an id as the API makes them, and so safe in a file's name.
plain_id() {
    case $1 in
    '' | *[!A-Za-z0-9_-]*) return 1 ;;
    esac
    [ "${#1}" -le 80 ]
}

# --- JSON

# scalars [raw]: print the scalars of the JSON in $answer as "path value", one a line: targets.0.name bastion. Escapes in
# strings stay, but for \" \\ and \/ without "raw": so there are no control characters.
scalars() {
    printf '%s\n' "$answer" | awk -v raw="${1:-}" '
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
                        if (raw || (c != "\"" && c != "\\" && c != "/")) c = "\\" c
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

# field PATH: print its value in $answer, or nothing. It is cut at a length that the API's values do not have.
field() { scalars | sed -n "s/^$1 //p" | sed 1q | printable | cut -c 1-2000; }

# members PATH...: print those that $answer has, as members of a JSON object. They are cut like fields, but not within an
# escape: half of one would escape the quote behind it.
members() {
    for path in "$@"; do
        value=$(scalars raw | sed -n "s/^$path //p" | sed 1q | cut -c 1-2000 | awk '{
            if (match($0, /\\+(u[0-9A-Fa-f]?[0-9A-Fa-f]?[0-9A-Fa-f]?)?$/)) {
                last = RSTART - 1
                while (substr($0, last + 1, 1) == "\\") last++
                if ((last - RSTART) % 2 == 0) $0 = substr($0, 1, last - 1) # an odd number of backslashes
            }
            print
        }')
        [ -z "$value" ] || printf ', "%s": "%s"' "$path" "$value"
    done
}

# Print the content of the list "grants" in $answer in a line, unchanged, and ":" with the cursor in the next; nothing if
# there is no such list. awk's records are the texts between quotes, so that strings are not read character by
# character: pages are long.
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

# Print a text as a JSON string. Control characters were refused before.
quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; 1s/^/"/; $s/$/"/'; }

# Print a text as a part of a URL. All bytes but letters, digits and - . _ ~ are escaped.
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

# --- the grants that were opened from here
#
# There is a file for each grant, with the API's URL in it; its name is the grant's id. So shells need no lock to open
# and revoke at the same time. If a file is lost or cannot be written, `revoke` without an id does not know the grant.

records() {
    case ${XDG_STATE_HOME:-} in
    /*) printf '%s/knock/sh' "$XDG_STATE_HOME" ;;
    *) [ -n "${HOME:-}" ] && printf '%s/.local/state/knock/sh' "$HOME" ;;
    esac
}

remember() {
    place=$(records) || return 0
    (
        umask 077
        mkdir -p "$place" && printf '%s\n' "$url" >"$place/$grant" &&
            find "$place" -type f -mtime +400 -exec rm -f {} + # no grant is longer than a year
    ) 2>/dev/null || :
}

forget() {
    place=$(records) || return 0
    rm -f "$place/$1" 2>/dev/null || :
}

# Print the ids of grants that were opened from here through this API.
remembered() {
    place=$(records) || return 0
    for record in "$place"/*; do
        [ -f "$record" ] && IFS= read -r at <"$record" && [ "$at" = "$url" ] && plain_id "${record##*/}" &&
            printf '%s\n' "${record##*/}"
    done 2>/dev/null
    return 0
}

# --- the commands

# nap SECONDS: sleep, but handle signals at once.
nap() {
    sleep "$1" <&- >/dev/null 2>&1 &
    sleeper=$!
    wait "$sleeper" || :
    kill "$sleeper" 2>/dev/null || :
}

# open_grant: knock, and wait until the grant is active; retry for --wait while there is no room. Sets $grant.
open_grant() {
    body=
    if [ -n "$targets" ]; then body="\"targets\":[$targets]"; fi
    if [ -n "$duration" ]; then body="$body${body:+,}\"duration\":$(quoted "$duration")"; fi
    if [ -n "$source" ]; then body="$body${body:+,}\"source\":$(quoted "$source")"; fi
    if [ -n "$reason" ]; then body="$body${body:+,}\"reason\":$(quoted "$reason")"; fi
    if [ -n "$renews" ]; then body="$body${body:+,}\"renews\":$(quoted "$renews")"; fi
    pause=1 waited=0
    while :; do
        request POST /knock "{$body}"
        case $status in
        2??) await_grant && return ;;
        *)
            may_retry || refused
            [ "$waited" -lt "$wait" ] || refused
            why="$(field title): $(field detail)"
            ;;
        esac
        case $status in
        2??) # the grant failed, and opened nothing
            [ "$waited" -lt "$wait" ] || fail 4 GrantNotOpened "grant $grant is failed: $why" "$(about_grant)"
            grant=
            ;;
        esac
        [ -z "$caught" ] || exit "$caught"
        [ "$waited" != 0 ] || note "not now ($why); trying again for $wait s"
        [ "$pause" -le $((wait - waited)) ] || pause=$((wait - waited))
        nap "$pause"
        waited=$((waited + pause)) pause=$((pause * 2))
        [ "$pause" -le 30 ] || pause=30
    done
}

# await_grant: wait until the grant in $answer is active. Gives 1 if it failed for want of room, and exits with an error
# for any other end. A call without an answer is repeated.
await_grant() {
    grant=$(field id)
    plain_id "$grant" || not_knock "with a grant that is none of the Knock API's"
    [ -n "$json$quiet$uninterrupted" ] || remember
    minute=60 failed='' now_is=$(field status)
    until=$(($(date +%s) + minute))
    while [ "$now_is" = pending ]; do
        [ -z "$caught" ] || exit "$caught"
        [ "$(date +%s)" -lt "$until" ] || not_decided
        nap 1
        if look; then now_is=$(field status); fi
    done
    [ "$now_is" != active ] || return 0
    forget "$grant"
    why=$(scalars | sed -n 's/^events\.[0-9]*\.reason //p' | sed -n '$p' | printable | cut -c 1-2000)
    case $now_is$why in
    failedPoolExhausted:* | failedSourceFull:*) return 1 ;;
    esac
    fail 1 GrantNotOpened "grant $grant is $now_is${why:+: $why}" "$(about_grant)"
}

# look: read $grant anew. Sets $answer, or $failed and $code to the error.
look() {
    code=0
    output=$(print_grant 2>&1) || code=$?
    if [ "$code" = 0 ]; then
        answer=$output failed=''
        return 0
    fi
    failed=$(printf '%s\n' "$output" | sed -n 's/^knock\.sh: //p' | sed 1q)
    return 1
}

# print_grant: print the API's JSON of $grant, or exit with an error; to be run in a subshell.
print_grant() {
    trap - EXIT
    json='' patience=10
    call GET "/grants/$grant"
    [ "$(field id)" = "$grant" ] || not_knock "with something that is not grant $grant"
    printf '%s\n' "$answer"
}

# not_decided: exit with the error for a grant that was not active within a minute.
not_decided() {
    set -- "look with knock.sh show $grant, end it with knock.sh revoke $grant"
    [ -n "$failed" ] || fail 1 GrantNotOpened "grant $grant is still pending after a minute: $1" "$(about_grant)"
    name=GrantNotOpened
    [ "$code" != 3 ] || name=CannotReach
    fail "$code" "$name" "whether grant $grant is open is not known: $failed; $1" "$(about_grant)"
}

about_grant() { printf ', "grant_id": "%s"' "$grant"; }

say_open() {
    names=$(scalars | sed -n 's/^targets\.[0-9]*\.name //p' | tr '\n' ' ' | printable)
    printf 'open: %s from %s until %s (%s s left), grant %s\n' \
        "${names% }" "$(field source)" "$(field expires_at)" "$(field seconds_left)" "$grant"
}

open_targets() {
    open_grant
    trap '' PIPE
    show_opened || fail 1 OutputGone "standard output cannot be written; end what is open with knock.sh revoke $grant"
    [ -z "$json$quiet" ] || return 0
    named=$renews
    note_still_open sooner "this ends sooner than what is open already: "
}

show_opened() {
    if [ -n "$json" ]; then
        print_json "$answer"
    elif [ -n "$quiet" ]; then
        printf '%s\n' "$grant"
    else
        say_open
    fi
}

# run_command COMMAND...: open, run the command, and revoke. Signals are caught before the first request, so that the
# grant is revoked however the script ends.
run_command() {
    case $1 in
    */*)
        [ -e "$1" ] || fail 127 KnockError "$1 is not found; nothing was opened"
        { [ -x "$1" ] && [ ! -d "$1" ]; } || fail 126 KnockError "$1 may not be executed; nothing was opened"
        ;;
    *) command -v -- "$1" >/dev/null 2>&1 || fail 127 KnockError "$1 is not found; nothing was opened" ;;
    esac
    uninterrupted=yes
    trap 'caught=129' HUP
    trap 'caught=130' INT
    trap 'caught=143' TERM
    trap 'close_grant' EXIT
    open_grant
    [ -z "$caught" ] || exit "$caught"
    note "$(say_open)"
    # A shell starts background commands with SIGINT ignored. If env cannot restore it, a command at a terminal runs
    # in the foreground: it gets Ctrl-C and a closed terminal there, and a signal to this shell alone takes effect
    # after its end. Without a terminal, the command gets SIGTERM in place of SIGINT.
    reset=''
    if env --default-signal=INT,QUIT true 2>/dev/null; then reset='env --default-signal=INT,QUIT'; fi
    code=0
    if [ -z "$reset" ] && [ -t 0 ]; then
        (give_back_key && exec "$@") || code=$?
        exit "$code"
    fi
    exec 3<&0
    (
        trap - HUP INT TERM EXIT
        give_back_key
        # shellcheck disable=SC2086 # none or two words
        exec $reset "$@"
    ) <&3 3<&- &
    child=$!
    exec 3<&-
    trap 'pass HUP' HUP
    trap 'pass TERM' TERM
    # The terminal sends SIGINT to the command as well.
    if [ -t 0 ]; then trap 'caught=130' INT; else trap 'pass INT' INT; fi
    # Pass on what came before these traps were set.
    case $caught in
    129) pass HUP ;;
    130) pass INT ;;
    143) pass TERM ;;
    esac
    # A signal ends the wait, but not the command: wait again.
    while :; do
        caught='' code=0
        wait "$child" || code=$?
        [ -n "$caught" ] || break
        kill -0 "$child" 2>/dev/null || break
    done
    exit "$code"
}

# Restore the environment that this script was started with, for the command.
give_back_key() {
    KNOCK_API_KEY=$given
    [ -z "$given" ] || export KNOCK_API_KEY
}

pass() {
    caught=yes
    [ "$1$reset" != INT ] || set -- TERM
    kill -s "$1" "$child" 2>/dev/null || :
}

# Revoke the grant of run. It is retried after a lost answer: revoking it again changes nothing.
close_grant() {
    code=$?
    trap '' HUP INT TERM
    trap - EXIT
    [ -n "$grant" ] || exit "$code"
    patience=15 tries=0
    until (call DELETE "/grants/$grant" 2>/dev/null) 2>/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" = 3 ]; then
            say "grant $grant could not be ended: end it with knock.sh revoke $grant, or leave it to its own end"
            exit "$code"
        fi
        sleep "$tries"
    done
    note "ended: $grant"
    exit "$code"
}

# note_still_open KIND WORDS: print, after the words, the other active grants of the same principal and source that open
# targets of the grant in $answer: any of them (KIND is "any"), or all of them and for longer ("sooner"). Grants in $named
# are left out, since this command revokes them. A failure is ignored.
note_still_open() {
    this=$(scalars)
    path="/grants?limit=100&source=$(escaped "$(field source)")"
    (
        call GET "$path" 2>/dev/null
        { printf '%s\n' "$this" && echo "the list" && scalars; } | awk -v kind="$1" -v named=" $named " '
        /^the list$/ { listing = 1; next }
        { path = $1; value = substr($0, length(path) + 2); split(path, part, ".") }
        !listing && part[1] == "targets" && part[3] == "name" { wanted[value] = 1; n++ }
        !listing { own[path] = value; next }
        part[1] != "grants" { next }
        { k = part[2]; if (k >= count) count = k + 1 }
        part[3] == "targets" && part[5] == "name" { if (value in wanted) shared[k]++; next }
        { at = part[3] (part[4] == "" ? "" : "." part[4]); its[k, at] = value }
        END {
            for (k = 0; k < count; k++) {
                if (its[k, "id"] == own["id"] || index(named, " " its[k, "id"] " ")) continue
                if (its[k, "status"] != "active" || its[k, "principal.id"] != own["principal.id"]) continue
                if (kind == "any" ? !shared[k] : shared[k] < n) continue
                if (kind == "sooner" && its[k, "expires_at"] <= own["expires_at"]) continue
                print "still open until " its[k, "expires_at"] " by " its[k, "id"]
            }
        }'
    ) | while IFS= read -r line; do note "$2$line"; done
}

# gather FILTER: read all pages of a list, and set $answer to one page with all grants. If there are more than 100 pages,
# the page and $after have the cursor of the next one.
gather() {
    filter=$1 grants='' after='' pages=0 most=100
    while [ "$pages" -lt "$most" ]; do
        pages=$((pages + 1))
        call GET "/grants?limit=100$filter${after:+&cursor=$(escaped "$after")}"
        list=$(page)
        case $list in
        *:*) ;;
        *) not_knock "with something that is not from the Knock API" ;;
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
    cursor=null
    [ -z "$after" ] || cursor="\"$after\""
    answer="{\"grants\": [$grants], \"cursor\": $cursor}"
}

list_grants() {
    gather "${all:+&status=all}"
    if [ -n "$quiet" ]; then
        scalars | sed -n 's/^grants\.[0-9]*\.id //p' | printable
    else
        print_json "$answer"
    fi
    [ -z "$after" ] || fail 1 Incomplete "there are more grants than these, which are the newest"
}

# Print the ids of the key's own live grants, also for an operator. With --marked, only of those whose reason ends with
# the mark; it looks several times, since a grant is listed a moment after its start.
own_ids() {
    call GET /whoami
    me=$(field principal.id)
    looks=1
    [ -z "$mark" ] || looks=4
    while :; do
        gather ''
        [ -z "$after" ] || fail 1 Incomplete "there are too many grants to end at once: name them"
        own=$(scalars | awk -v me="$me" -v mark="$mark" '
            { split($1, part, "."); value = substr($0, length($1) + 2) }
            part[1] != "grants" { next }
            { k = part[2] + 0; if (k >= n) n = k + 1 }
            { its[k, part[3] (part[4] == "" ? "" : "." part[4])] = value }
            END {
                for (k = 0; k < n; k++) {
                    if (its[k, "principal.id"] != me || its[k, "id"] !~ /^[A-Za-z0-9_-]+$/) continue
                    reason = its[k, "reason"]
                    if (substr(reason, length(reason) - length(mark) + 1) == mark) print its[k, "id"]
                }
            }')
        looks=$((looks - 1))
        if [ -n "$own" ] || [ "$looks" = 0 ]; then break; fi
        sleep 1
    done
    [ -z "$own" ] || printf '%s\n' "$own"
}

# Revoke grants. It goes on after a refusal, and stops if the API does not answer. Of the grants that were opened from
# here, those that have ended and those of other keys are skipped.
revoke_grants() {
    if [ -n "$all$mark" ]; then
        ids=$(own_ids) || exit "$?"
        # shellcheck disable=SC2086 # ids hold no blanks and no wildcards
        set -- $ids
    elif [ $# = 0 ]; then
        from_here=yes
        ids=$(remembered)
        # shellcheck disable=SC2086 # as above
        set -- $ids
    fi
    worst=0 named="$*" done_ids=''
    listed=''
    for id in "$@"; do
        path="/grants/$(escaped "$id")"
        [ -z "$reason" ] || path="$path?reason=$(escaped "$reason")"
        if [ -n "$from_here" ]; then
            request DELETE "$path"
            [ "$status" != 404 ] || continue
        fi
        code=0 ended=
        if [ -n "$json" ]; then
            ended=$(end_grant) || code=$?
        else
            (end_grant) || code=$?
        fi
        case $code in
        0)
            forget "$id"
            done_ids=yes
            listed="$listed${listed:+, }$ended"
            ;;
        9) forget "$id" ;;
        3) exit 3 ;;
        *) worst=$code ;;
        esac
    done
    [ -z "$json" ] || print_json "{\"grants\": [$listed]}"
    if [ -z "$done_ids" ] && [ "$worst" = 0 ]; then
        if [ -n "$mark" ]; then
            note "no live grant of this key has a reason that ends with $mark"
            exit 0
        fi
        if [ -n "$all" ]; then
            fail 1 NothingToRevoke "nothing to revoke: this key has no live grant"
        fi
        fail 1 NothingToRevoke "nothing to revoke: nothing that was opened from here is live; knock.sh ls shows what is, and --all ends all of yours"
    fi
    exit "$worst"
}

# end_grant: revoke $id with a DELETE of $path, which $from_here has made already, and print the result. Exits with 9 for
# a grant that was opened from here, and had ended before.
end_grant() {
    [ -n "$from_here" ] || request DELETE "$path"
    case $status in
    2??) [ "$(field id)" = "$id" ] || not_knock "with something that is not grant $id" ;;
    *) refused ;;
    esac
    if [ -n "$from_here" ] && [ "$(field status)" != revoked ]; then exit 9; fi
    if [ -n "$json" ]; then
        printf '%s\n' "$answer"
    elif [ -n "$quiet" ]; then
        printf '%s\n' "$id"
    else
        printf '%s: %s\n' "$(field status)" "$id"
        note_still_open any ""
    fi
}

# command_of WORD: whether the first word is a command. Exits with an error if it resembles one, or is another program's
# name for one. A target of such a name is opened with "open" before it.
command_of() {
    case $1 in
    open | run | ls | show | revoke | whoami) return 0 ;;
    # Names of other programs for these commands, as in the Python client.
    help | usage) set -- "$1" --help ;;
    list | status | dir | grants | sl) set -- "$1" ls ;;
    close | end | stop | delete | rm | lock) set -- "$1" revoke ;;
    exec | with) set -- "$1" run ;;
    who | me | id) set -- "$1" whoami ;;
    renew | extend | refresh) set -- "$1" "open with --renews ID" ;;
    watch | login | logout | profiles | ssh-config | completion)
        misused "knock.sh has no $1: the Python client, knock, has it. A target of that name: knock.sh open $1"
        ;;
    *)
        nearest=$(printf '%s\n' "$1" | awk '
        function near(a, b,   i, la, lb) {
            la = length(a); lb = length(b)
            if ((la < lb ? la : lb) < 3) return 0
            for (i = 1; i <= la && substr(a, i, 1) == substr(b, i, 1);) i++
            if (la == lb + 1) return substr(a, i + 1) == substr(b, i)
            if (lb == la + 1) return substr(a, i) == substr(b, i + 1)
            if (la != lb) return 0
            if (substr(a, i, 1) == substr(b, i + 1, 1) && substr(a, i + 1, 1) == substr(b, i, 1) \
                && substr(a, i + 2) == substr(b, i + 2)) return 1
            return la > 5 && substr(a, i + 1) == substr(b, i + 1) # of short words, many are one letter apart
        }
        { n = split("open run show revoke whoami", commands, " ")
          for (k = 1; k <= n; k++) if (near($0, commands[k])) { print commands[k]; exit } }')
        [ -n "$nearest" ] || return 1
        set -- "$1" "$nearest"
        ;;
    esac
    misused "there is no command $1; did you mean $2? A target of that name: knock.sh open $1"
}

main() {
    json='' quiet='' uninterrupted='' grant='' caught='' patience=35 family='' sleeper='' from_here=''
    for word in "$@"; do
        case $word in
        --) break ;;
        --json) json=yes ;;
        -q | --quiet) quiet=yes ;;
        esac
    done
    while :; do
        case ${1:-} in
        --json | -q | --quiet) shift ;;
        -4 | -6) set_family "$1" && shift ;;
        *) break ;;
        esac
    done
    command=open
    case ${1:-} in
    '' | -*) ;;
    *)
        check_text "$1"
        if command_of "$1"; then
            command=$1
            shift
        fi
        ;;
    esac
    [ -z "$json" ] || [ -z "$quiet" ] || misused "--json and --quiet contradict each other: use one"
    targets='' duration='' reason='' source='' renews='' wait=0 all='' mark='' words=0 has_dashes=''
    # Words that are no options are appended again, so that only they are left after the loop. With run they are
    # not: then the command after -- is left.
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
        --for | --reason | --source | --renews | --wait | --marked)
            [ "$count" -gt 0 ] || misused "$word wants a value"
            check_text "$1"
            case $command$word in
            open--for | run--for)
                case $1 in
                *[!0-9]*) ;;
                *) misused "--for $1: $1 what? Say ${1}m, ${1}h or ${1}s" ;;
                esac
                duration=$1
                ;;
            open--source | run--source) source=$1 ;;
            open--renews) renews=$1 ;;
            open--reason | run--reason | revoke--reason) reason=$1 ;;
            open--wait | run--wait) wait=$(seconds "$1") || misused "--wait $1: say how long, like 90s, 5m or 1h" ;;
            revoke--marked)
                case $1 in
                *[!\ -~]* | *\"* | *\\*) misused "--marked takes printable ASCII without quotes and backslashes" ;;
                esac
                mark=$1
                ;;
            *) misused "$command takes no $word" ;;
            esac
            shift
            count=$((count - 1))
            ;;
        --all)
            case $command in
            ls | revoke) all=yes ;;
            *) misused "$command takes no $word" ;;
            esac
            ;;
        --json | -q | --quiet) ;; # known already
        -4 | -6) set_family "$word" ;;
        --)
            [ "$command" = run ] || misused "only run takes a command behind --"
            has_dashes=yes
            break
            ;;
        -*) misused "there is no option $word" ;;
        *)
            check_text "$word"
            case $command$word in
            open*,* | run*,*) misused "targets are separated by spaces: $(printf '%s' "$word" | tr ',' ' ')" ;;
            esac
            targets="$targets${targets:+,}$(quoted "$word")"
            words=$((words + 1))
            [ "$command" = run ] || set -- "$@" "$word"
            ;;
        esac
    done
    [ -z "$mark" ] || [ "$words$all" = 0 ] || misused "name grants, or say --all, or --marked: one of them"
    case $command$words$all in
    open* | ls0* | whoami0 | show1 | revoke0*) ;;
    run*)
        [ -n "$has_dashes" ] || misused "run wants a command behind --: knock.sh run bastion -- ./deploy.sh"
        [ $# -gt 0 ] || misused "run wants a command behind --"
        ;;
    revoke*yes) misused "name grants or say --all, not both" ;;
    revoke*) ;;
    show*) misused "show wants the id of a grant; knock.sh ls shows them" ;;
    *) misused "$command takes no $1" ;;
    esac
    find_access
    trap 'interrupted' INT
    case $command in
    open) open_targets ;;
    run) run_command "$@" ;;
    ls) list_grants ;;
    show)
        call GET "/grants/$(escaped "$1")"
        if [ -n "$quiet" ]; then field id; else print_json "$answer"; fi
        ;;
    revoke) revoke_grants "$@" ;;
    whoami)
        call GET /whoami
        if [ -n "$quiet" ]; then field principal.name; else print_json "$answer"; fi
        ;;
    esac
}

interrupted() {
    [ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null || :
    case $command in
    open) fail 130 Interrupted "interrupted; something may be open all the same: look with knock.sh ls, end it with knock.sh revoke ${grant:-ID}" ;;
    revoke) fail 130 Interrupted "interrupted; what has ended is not known: look with knock.sh ls" ;;
    *) fail 130 Interrupted "interrupted" ;;
    esac
}

set_family() {
    [ -z "$family" ] || [ "$family" = "$1" ] || misused "-4 and -6 contradict each other: use one"
    family=$1
}

# seconds TEXT: print a duration like 90s, 5m or 1h in seconds. A number without a unit is an error.
seconds() {
    [ "$1" != 0 ] || set -- 0s
    case ${1%[smh]} in
    '' | *[!0-9]* | "$1" | ??????*) return 1 ;;
    esac
    number=$(printf '%s' "${1%?}" | sed 's/^0*\(.\)/\1/') # 08 would be octal
    case $1 in
    *s) echo "$number" ;;
    *m) echo "$((number * 60))" ;;
    *h) echo "$((number * 3600))" ;;
    esac
}

check_text() {
    case $1 in
    '') misused "an empty word was given" ;;
    *[[:cntrl:]]*) misused "a control character was given" ;;
    esac
}

main "$@"
