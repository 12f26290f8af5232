"""Shell completion: the scripts, and the candidates that they show.

The scripts call `knock __complete WORD…` with the words typed so far, and get a candidate a line, with a tab
and a description. Names of targets and ids of live grants are cached in the state folder for a short time;
commands that read them from the API cache them as well. If the cache is too old, a completion calls the API
once, and has no candidates after two seconds.
"""

from __future__ import annotations

from . import config, state
from .cli import VALUED, find_command, make_parser
from .errors import ConfigurationError, KnockError
from .names import is_name
from .screen import Screen, plain

FRESH = {"targets": 600.0, "grants": 30.0}  # seconds; targets change seldom, grants often

_OPTIONS = {
    "open": ["--for", "--reason", "--source", "--renews", "--new", "--wait"],
    "run": ["--for", "--reason", "--source", "--wait"],
    "ls": ["--all", "--status", "--principal", "--source", "--target", "--limit"],
    "show": [],
    "renew": ["--all", "--for"],
    "revoke": ["--all", "--reason"],
    "whoami": [],
    "watch": ["--for", "--reason", "--every", "--revoke"],
    "ssh-config": ["--target", "--for", "--reason", "--proxy-command"],
    "login": ["--url", "--no-keyring", "--no-check"],
    "logout": [],
    "profiles": [],
    "completion": [],
}

_BASH = """\
# knock completion for bash. Add to ~/.bashrc:  eval "$(knock completion bash)"
_knock() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word%%$'\\t'*}")
    done < <(knock __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _knock knock
"""

_ZSH = """\
#compdef knock
# knock completion for zsh. Add to ~/.zshrc, after compinit:  eval "$(knock completion zsh)"
_knock() {
    local line
    local -a candidates
    while IFS= read -r line; do
        candidates+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done < <(knock __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    _describe knock candidates
}
compdef _knock knock
"""

_FISH = """\
# knock completion for fish:  knock completion fish > ~/.config/fish/completions/knock.fish
function __knock_complete
    set -l words (commandline -opc)
    knock __complete $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c knock -f -a '(__knock_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run_completion(words: list[str]) -> int:
    """`knock completion SHELL`"""
    parser = make_parser(
        "completion",
        "Print the completion script of a shell.",
        'eval "$(knock completion bash)"          in ~/.bashrc',
        'eval "$(knock completion zsh)"           in ~/.zshrc, after compinit',
        "knock completion fish > ~/.config/fish/completions/knock.fish",
        quiet=False,
        calls=False,
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    args = parser.parse(words)
    script = SCRIPTS[args.shell]
    screen = Screen(args.json)
    if args.json:
        screen.json({"shell": args.shell, "script": script})
    else:
        screen.text(script)
    return 0


def run_complete(words: list[str]) -> int:
    """`knock __complete WORD…`: print the completions of the last word. It reports no errors."""
    last = words[-1] if words else ""
    for word, description in candidates(words[:-1], last):
        if word.startswith(last):
            Screen().text(f"{plain(word)}\t{plain(description)}\n")
    return 0


def candidates(before: list[str], last: str) -> list[tuple[str, str]]:
    """Give the words that can follow, each with a description."""
    command, rest = find_command(before)
    command = "open" if command == "__implied" else command
    profile = before[before.index("--profile") + 1] if "--profile" in before[:-1] else None
    previous = before[-1] if before else ""
    if previous in VALUED:
        return _values(previous, profile)
    if last.startswith("-"):
        shared = ["--profile", "--json", "--help"]
        if command not in ("ssh-config", "completion"):
            shared.append("--quiet")
        if command not in ("logout", "profiles", "completion", "ssh-config"):
            shared += ["-4", "-6"]
        options = [*_OPTIONS.get(command, []), *shared]
        return [(option, "option") for option in options]
    if command in ("show", "revoke", "renew"):
        return [(word, description) for word, description in _known(profile, "grants") if word not in rest]
    if command == "completion":
        return [(shell, "shell") for shell in sorted(SCRIPTS)]
    if command not in ("open", "run", "watch") or (command == "run" and "--" in before):
        return []
    words = [(word, description) for word, description in _known(profile, "targets") if word not in before]
    if all(word.startswith("-") for word in before):
        words += [(name, "command") for name in _OPTIONS]
    return words


def _values(option: str, profile: str | None) -> list[tuple[str, str]]:
    """Give the known values of an option, each with a description."""
    if option == "--profile":
        return [(name, "profile") for name in _profiles()]
    if option == "--for":
        return [(duration, "duration") for duration in ("30m", "1h", "4h", "8h", "24h")]
    if option == "--renews":
        return _known(profile, "grants")
    if option == "--target":
        return _known(profile, "targets")
    if option == "--status":
        return [(status, "status") for status in ("expired", "failed", "revoked", "superseded")]
    return []


def _profiles() -> list[str]:
    try:
        return sorted(config.profiles())
    except ConfigurationError:
        return []


def _known(profile: str | None, kind: str) -> list[tuple[str, str]]:
    try:
        url = config.address(profile)
        words = state.kept_words(url, kind, FRESH[kind])
        if words is None:
            from .session import Limits, Session

            # With short limits, since a person waits at the prompt.
            with Session(profile, Screen(as_json=False, quiet=True), limits=Limits(2.0, 1.0, 1, 2.0)) as api:
                if kind == "targets":
                    api.keep_targets(api.client.whoami().targets)
                else:
                    api.keep_grants(list(api.client.grants(limit=100)))
            words = state.kept_words(url, kind, FRESH[kind])
    except KnockError:
        return []
    # A shell may interpret a candidate, so only safe names are offered.
    return sorted((word, description) for word, description in (words or {}).items() if is_name(word))
