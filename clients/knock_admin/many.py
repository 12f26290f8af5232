"""Many keys at once: `key add --from FILE` and `key rotate --all`.

A value is stored before its key can be used: in a file that only its owner can read, or by a command, run for
each key. So an interruption or a full disk leaves no usable key whose value is lost: the last key opens
nothing yet, and the same command completes it. Keys that exist already are left as they are, and reported.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from knock_admin import keys, tags
from knock_admin.errors import AdminError, UsageError
from knock_admin.output import Result, cell, count, progress, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from knock_admin.stack import Stack

    Keep = Callable[[str, str, str], object]

REQUIRED = ("name", "targets", "max")
OPTIONAL = ("max_live", "until", "operator", "any_source")
MOST = 10_000
"""The most lines of a file. An account has 10,000 API keys at most, unless AWS has raised the quota.

https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
"""
COMMAND_SECONDS = 60


def read(file: str) -> dict[str, dict[str, str]]:
    """Read a CSV file of principals: name → rights as tags. Raises UsageError with every wrong line."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--from {file}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise UsageError(f"--from {file}: it is not in UTF-8 ({error})") from error
    lines = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        _check_columns(file, list(lines.fieldnames or ()))
        people: dict[str, dict[str, str]] = {}
        faults = []
        for line in lines:
            try:
                name, rights = _person(line)
                if name in people:
                    raise ValueError(f"{name} is there twice")
                people[name] = rights
            except ValueError as error:
                faults.append(f"line {lines.line_num}: {error}")
    except csv.Error as error:
        raise UsageError(f"--from {file}: line {lines.line_num}: {error}") from error
    if faults:
        raise UsageError("\n".join([f"--from {file}: nothing was done, since", *faults[:20]]))
    if not 0 < len(people) <= MOST:
        raise UsageError(f"--from {file}: it has {len(people)} lines, and 1 to {MOST} were expected")
    return people


def _check_columns(file: str, columns: list[str]) -> None:
    """Raise UsageError unless the first line names known columns, the required ones among them, each once."""
    if missing := [name for name in REQUIRED if name not in columns]:
        raise UsageError(f"--from {file}: its first line names no column {', '.join(missing)}")
    if strange := [name for name in columns if name not in (*REQUIRED, *OPTIONAL)]:
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise UsageError(
            f"--from {file}: there is no column {visible(', '.join(strange))}; there are {known}"
        )
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UsageError(f"--from {file}: its first line names the column {', '.join(twice)} twice")


def _person(line: Mapping[str, str | None]) -> tuple[str, dict[str, str]]:
    """Read one line: name, and rights as tags. Raises ValueError."""
    if None in line or None in line.values():
        raise ValueError("it has another number of fields than the first line")
    fields = {name: (value or "").strip() for name, value in line.items()}
    for name in REQUIRED:
        if not fields[name]:
            raise ValueError(f"it has no {name}")
    rights = {
        tags.TARGETS: tags.parse_targets(fields["targets"]),
        tags.MAX_DURATION: tags.show_duration(tags.parse_duration(fields["max"])),
    }
    if text := fields.get("max_live"):
        rights[tags.MAX_LIVE] = str(tags.parse_max_live(text))
    if text := fields.get("until"):
        tags.parse_until(text)
        rights[tags.UNTIL] = text
    if text := fields.get("any_source"):
        rights[tags.ANY_SOURCE] = tags.parse_any_source(text)
    operator = fields.get("operator") or "no"
    if operator not in ("yes", "no", "true", "false"):
        raise ValueError(f"operator is yes or no, not {operator!r}")
    if operator in ("yes", "true"):
        rights[tags.OPERATOR] = "true"
    return tags.principal_name(fields["name"]), rights


def keeper(file: str | None, command: str | None, dry_run: bool) -> Keep:
    """Give the function that stores a key's value, in a file or by a command.

    Raises UsageError unless exactly one of them is named.
    """
    if dry_run and not (file and command):
        return lambda _name, _id, _value: None
    if bool(file) == bool(command):
        raise UsageError("Where do the values go? Name one of --values FILE and --values-to COMMAND.")
    return _in_file(Path(str(file))) if file else _by_command(str(command))


def _in_file(path: Path) -> Keep:
    """Append values to a file, and sync each to the disk. Raises UsageError if others can read the file."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise UsageError(f"--values {path}: {error.strerror or error}") from error
    values_file = os.fdopen(number, "w", encoding="utf-8", newline="")
    state = os.fstat(values_file.fileno())
    if os.name == "posix" and (not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077):
        values_file.close()
        raise UsageError(f"--values {path}: others can read it; `chmod 600` it, or name another file")
    if os.name == "posix" and state.st_uid != os.geteuid():
        values_file.close()
        raise UsageError(f"--values {path}: it is another user's, who can read it; name another file")
    writer = csv.writer(values_file, lineterminator="\n")
    begun = False  # the header is written with the first value: a run may end before it

    def keep(name: str, key_id: str, value: str) -> None:
        nonlocal begun
        try:
            if not begun and os.fstat(values_file.fileno()).st_size == 0:
                writer.writerow(("name", "id", "value"))
            elif not begun and not _ends_a_line(values_file.fileno()):  # a full disk truncated the last line
                values_file.write("\n")
            begun = True
            writer.writerow((cell(name), key_id, value))
            values_file.flush()
            os.fsync(values_file.fileno())
        except OSError as error:
            raise AdminError(
                f"The value of {visible(name)} could not be written to {path}: {error.strerror or error}"
            ) from error

    return keep


def _ends_a_line(number: int) -> bool:
    """Say whether a file that is not empty ends with a newline. Appending still goes to its end."""
    os.lseek(number, -1, os.SEEK_END)
    return os.read(number, 1) == b"\n"


def _by_command(command: str) -> Keep:
    """Store values with a command, run for each. It runs without a shell, so a name cannot change it."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--values-to {command!r}: {error}") from error
    if not words or not words[0]:
        raise UsageError(f"--values-to {command!r}: it names no command")

    def keep(name: str, key_id: str, value: str) -> None:
        environment = {**os.environ, "KNOCK_KEY_NAME": name, "KNOCK_KEY_ID": key_id}
        try:
            process = subprocess.run(  # noqa: S603  # the command that the operator named
                words, input=value, text=True, env=environment, timeout=COMMAND_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise AdminError(
                f"{words[0]} took more than {COMMAND_SECONDS} s for the value of {visible(name)}."
            ) from error
        except OSError as error:
            raise AdminError(f"--values-to: {words[0]} cannot be run: {error.strerror or error}") from error
        if process.returncode:
            raise AdminError(
                f"{words[0]} failed for the value of {visible(name)}, with exit code {process.returncode}."
            )

    return keep


def add(stack: Stack, people: Mapping[str, Mapping[str, str]], keep: Keep) -> Result:
    """Make a key for each principal and store its value. Keys that exist already are left as they are."""
    listing = keys.look(stack)
    existing = {key.name: key for key in listing.inside}
    keys.check_targets(stack, " ".join(dict.fromkeys(_named_targets(people))))
    results: list[dict[str, str]] = []
    lines = []
    for name, rights in people.items():
        if name in existing:
            lines.append(f"{name} ({existing[name].id}) is there already{_differs(existing[name], rights)}")
            results.append({"name": name, "id": existing[name].id, "did": "nothing"})
            continue
        progress(f"{len(results) + 1} of {len(people)}: {name}")
        with _saying_how_far(name, results, len(people)):
            wanted = keys.own_tags(stack, name, rights)
            key_id, _ = keys.make(stack, name, wanted, keep=keep, listing=listing)
        lines.append(f"{name} ({key_id})")
        results.append({"name": name, "id": key_id, "did": "made"})
    return _result(results, lines, "made")


def _named_targets(people: Mapping[str, Mapping[str, str]]) -> list[str]:
    words = [word for rights in people.values() for word in rights[tags.TARGETS].split()]
    return [word for word in words if word != tags.EVERY_TARGET] or [tags.EVERY_TARGET]


def _differs(key: keys.Key, rights: Mapping[str, str]) -> str:
    differing = [tag for tag, value in rights.items() if key.tags.get(tag) != value]
    return f", with another {', '.join(differing)}; `key set` changes that" if differing else ""


def rotate(stack: Stack, keep: Keep, *, overlap: timedelta, now: datetime) -> Result:
    """Make a successor for every key that is not being rotated, and store its value.

    A second call makes none: all keys are being rotated then.
    """
    listing = keys.look(stack)
    members = listing.inside
    retiring = {key.name for key in members if key.retires_at is not None}
    results: list[dict[str, str]] = []
    lines = []
    names = list(dict.fromkeys(key.name for key in members))
    for name in names:
        current = [key for key in members if key.name == name and key.retires_at is None]
        label = visible(name)
        if name in retiring and current:
            lines.append(
                f"{label} is being rotated already; `knock-admin key rotate {label} --finish` ends that"
            )
            results.append({"name": name, "id": current[0].id, "did": "nothing"})
            continue
        progress(f"{len(results) + 1} of {len(names)}: {label}")
        with _saying_how_far(name, results, len(names)):
            old, retires_at, key_id, _ = keys.replace(
                stack, name, overlap=overlap, now=now, keep=keep, listing=listing
            )
        lines.append(f"{label} ({key_id}); the old one ({old.id}) retires {retires_at}")
        results.append({"name": name, "id": key_id, "did": "rotated"})
    return _result(results, lines, "rotated")


@contextmanager
def _saying_how_far(name: str, results: Sequence[Mapping[str, str]], total: int) -> Iterator[None]:
    """Add to an error how many keys were done before it."""
    try:
        yield
    except AdminError as error:
        raise AdminError(
            f"{error}\n{len(results)} of {total} were done before {visible(name)}, whose key opens nothing "
            "yet. The same command again goes on there."
        ) from error


def _result(results: list[dict[str, str]], lines: list[str], word: str) -> Result:
    number = sum(result["did"] == word for result in results)
    notes = [f"{count(number, 'key')} {word}, {len(results) - number} left as they were.", keys.SOON]
    return Result({"keys": results}, lines, notes=notes)
