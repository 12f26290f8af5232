"""`knock.sh`, in every shell it promises to run in. The same tests run against the local stack."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENTS, Api, Done, wait_until
from tests.clients.double import Double
from tests.conftest import need, program

SCRIPT = CLIENTS / "knock.sh"
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}
Run = Callable[..., Done]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    program("curl", "apt install curl")
    found = program(SHELLS[request.param][0], f"apt install {request.param}")
    return [found, *SHELLS[request.param][1:]]


@pytest.fixture(scope="session")
def applets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with busybox's own sed, awk, ls … and curl: a machine that has nothing else."""
    folder = tmp_path_factory.mktemp("busybox")
    subprocess.run(["busybox", "--install", "-s", folder], check=True)
    (folder / "curl").unlink(missing_ok=True)
    (folder / "curl").symlink_to(shutil.which("curl") or "")
    return folder


@pytest.fixture
def sh(
    shell: list[str],
    home: Path,
    spawn: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    if shell[-1] == "ash":
        monkeypatch.setenv("PATH", str(request.getfixturevalue("applets")))

    def run(*words: str, **more: str) -> Done:
        return spawn(*shell, str(SCRIPT), *words, **more)

    return run


@pytest.fixture
def as_alice(api: Api, monkeypatch: pytest.MonkeyPatch, home: Path) -> Api:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    return api


@pytest.fixture
def as_alice_on_double(double: Double, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


def test_open_ls_show_and_revoke_are_one_round(sh: Run, as_alice: Api) -> None:
    opened = sh("bastion", "web", "--for", "90m", "--reason", 'say "hi" \\ $(id) ü %41')
    match = re.fullmatch(
        r"open: bastion web from 203\.0\.113\.7/32 until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ "
        r"\((5400|539\d) s left\), grant (\S+)\n",
        opened.out,
    )
    assert match, opened
    assert (opened.code, opened.err) == (0, "")
    (listed,) = json.loads(sh("ls").out)["grants"]
    assert listed["id"] == match[2]
    assert listed["reason"] == 'say "hi" \\ $(id) ü %41'
    revoked = sh("revoke", match[2], "--reason", "a&b=c %2f ü")
    assert (revoked.code, revoked.out) == (0, f"revoked: {match[2]}\n")
    shown = json.loads(sh("show", match[2]).out)
    assert shown["status"] == "revoked"
    assert "a&b=c %2f ü" in json.dumps(shown["events"], ensure_ascii=False)
    assert json.loads(sh("ls").out)["grants"] == []
    assert json.loads(sh("ls", "--all").out)["grants"][0]["id"] == match[2]
    assert json.loads(sh("whoami").out)["principal"]["name"] == "alice"


def opened(done: Done) -> str:
    """Give the id of what a knock opened."""
    assert done.code == 0, done
    return done.out.split()[-1]


def test_two_jobs_behind_one_address_never_shut_each_others_door(sh: Run, as_alice: Api) -> None:
    for first, second in (("1h", "10m"), ("10m", "1h")):
        a, b = opened(sh("bastion", "--for", first)), opened(sh("bastion", "--for", second))
        done = sh("revoke", b)
        assert (done.code, done.out) == (0, f"revoked: {b}\n")
        assert re.fullmatch(rf"knock\.sh: still open until 20[-\dT:]+Z by {a}\n", done.err)
        assert as_alice.lets_in("203.0.113.7/32", "bastion")
        done = sh("revoke", a)
        assert (done.out, done.err) == (f"revoked: {a}\n", "")
        assert not as_alice.lets_in("203.0.113.7/32", "bastion")


def test_a_grant_to_renew_is_named(sh: Run, as_alice: Api) -> None:
    old = opened(sh("bastion", "--for", "1h"))
    new = opened(sh("bastion", "--for", "2h", "--renews", old))
    with as_alice.client("alice") as client:
        assert client.grant(new).renews == old
        wait_until(lambda: client.grant(old).status == "superseded")
    done = sh("bastion", "--renews", "nobodys")
    assert (done.code, done.out) == (1, "")
    assert "there is no grant" in done.err


def test_a_knock_that_ends_sooner_says_so_and_others_grants_are_no_matter(
    sh: Run, double: Double, as_alice_on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = opened(sh("bastion", "web", "--for", "2h"))
    done = sh("bastion", "--for", "1h", "--reason", '"id": "x", {[')
    assert re.fullmatch(
        rf"knock\.sh: this ends sooner than what is open already: still open until \S+Z by {longer}\n",
        done.err,
    )
    assert sh("bastion", "--for", "3h").err == ""
    assert longer not in sh("bastion", "--for", "1h", "--renews", longer).err
    assert sh("revoke", *list(double.grants)).err == "", "what the same command ends is not open"
    opened(sh("web", "--for", "2h"))
    assert sh("bastion", "web", "--for", "1h").err == "", "that opens only a part"
    double.source = "198.51.100.9"
    other = opened(sh("web"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["bob"])
    opened(sh("web"))
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["operator"])
    opened(sh("web"))
    assert sh("revoke", other).err == ""


def test_what_is_still_open_is_asked_in_vain_and_nothing_fails(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.faults = [0, (500, {}, {"title": "A fault", "status": 500, "detail": "x"})]
    done = sh("bastion")
    assert (done.code, done.err) == (0, "")
    double.faults = [0, "drop"]
    done = sh("revoke", opened(done))
    assert (done.code, done.err) == (0, "")


def test_a_full_key_a_full_source_a_lost_target_and_a_lost_start_say_what_to_do(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    double.max_live["alice"] = 1
    only = opened(sh("bastion"))
    done = sh("web")
    assert (done.code, done.out) == (1, "")
    assert only in done.err
    assert "end one with knock.sh revoke ID, or take the place of one with --renews ID" in done.err
    double.max_live["alice"], double.full = 20, {"203.0.113.7/32"}
    assert "must end first" in sh("web").err
    gone = {"type": "urn:knock:problem:target-gone", "title": "The target is gone", "detail": "web"}
    double.faults = [(409, {}, gone)]
    assert "knock.sh whoami shows what you may open now" in sh("web").err
    lost = {"type": "urn:knock:problem:engine-unavailable", "title": "Try again", "detail": "x"}
    double.faults = [(503, {"Retry-After": "5"}, lost | {"grant_id": only})]
    done = sh("web")
    assert (done.code, double.calls("POST")) == (1, 5)
    assert (
        f"it may be open all the same: look with knock.sh ls, end it with knock.sh revoke {only}" in done.err
    )


def test_ls_gives_the_grants_of_every_page(sh: Run, as_alice: Api) -> None:
    odd = ['"]}, "cursor": "none", "grants": [{', "ends with \\", '\\" {[ü:,]} \\\\"', "", "plain"]
    with as_alice.client("alice") as client:
        for number, reason in enumerate(odd):
            made = client.knock(
                ("bastion", "web")[number % 2], duration=f"{number + 1}h", reason=reason or None
            )
            if number < 3:
                client.revoke(made.id)
        everything = [grant.json for grant in client.grants(status="all")]
    as_alice.give_pages_of(2)
    done = sh("ls", "--all")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["cursor"] is None
    assert [timeless(grant) for grant in told["grants"]] == [timeless(grant) for grant in everything]
    assert {grant["reason"] for grant in told["grants"]} >= {*odd[:3], None, "plain"}
    assert [grant["status"] for grant in json.loads(sh("ls").out)["grants"]] == ["active"] * 2


def timeless(grant: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a grant what is another a second later."""
    return {name: value for name, value in grant.items() if name != "seconds_left"}


def test_ls_asks_for_large_pages_and_a_further_one_only_when_there_is_one(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    assert sh("ls").out == '{"grants": [], "cursor": null}\n'
    for target in ("bastion", "web"):
        sh(target)
    double.seen.clear()
    double.page = 1
    assert sh("ls").code == 0
    paths = [call[1] for call in double.seen]
    assert paths == ["/prod/grants?limit=100", "/prod/grants?limit=100&cursor=1"]
    assert double.keys["alice"] not in "".join(paths)


def test_ls_prints_nothing_when_a_later_page_does_not_come(
    sh: Run, double: Double, as_alice_on_double: None
) -> None:
    for target in ("bastion", "web"):
        sh(target)
    double.page = 1
    double.faults = [0, "drop"]
    done = sh("ls")
    assert (done.code, done.out) == (3, "")
    double.faults = [0, (429, {}, {"message": "Too Many Requests"})]
    done = sh("ls")
    assert (done.code, done.out) == (1, "")
    double.faults = [0, (200, {}, {"items": []})]
    done = sh("ls")
    assert (done.code, done.out) == (3, "")
    assert "not from the Knock API" in done.err


def test_ls_stops_after_many_pages_and_says_so(
    shell: list[str], double: Double, as_alice_on_double: None, home: Path, spawn: Run
) -> None:
    text = SCRIPT.read_text()
    assert text.count("most=100") == 1
    short = home / "knock.sh"
    short.write_text(text.replace("most=100", "most=3"))
    double.page = 1
    one = {**double.knock("alice", {})[2], "reason": "again and again"}
    double.faults = [(200, {}, {"grants": [one], "cursor": "a+/="})] * 5
    done = spawn(*shell, str(short), "ls")
    assert (done.code, len(double.faults)) == (1, 2)
    assert json.loads(done.out) == {"grants": [one] * 3, "cursor": "a+/="}
    assert done.err == "knock.sh: there are more grants than these, which are the newest\n"
    assert double.seen[-1][1].endswith("&cursor=a%2b%2f%3d"), "as a URL has it"


def test_without_targets_everything_is_opened_from_any_place_of_the_options(sh: Run, as_alice: Api) -> None:
    assert sh().out.startswith("open: bastion web from")
    assert sh("--for", "1h", "open", "bastion").code == 1, "only the first word can be a command"
    assert sh("open", "--for", "1h", "bastion").out.startswith("open: bastion from")


def test_the_source_is_named_by_a_key_that_may(
    sh: Run, as_alice: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = sh("bastion", "--source", "198.51.100.7/32")
    assert refused.code == 1
    assert "knock.sh: The key may not do this: the key may only open" in refused.err
    monkeypatch.setenv("KNOCK_API_KEY", as_alice.keys["ci"])
    assert "from 198.51.100.7/32 until" in sh("bastion", "--source", "198.51.100.7/32").out


def test_refusals_exit_with_1_and_say_why(sh: Run, as_alice: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    done = sh("nosuch")
    assert (done.code, done.out) == (1, "")
    assert "may not open nosuch" in done.err
    assert sh("show", "nobodys").code == 1
    grant = sh("bastion").out.split()[-1]
    done = sh("revoke", "nobodys", "a/b?c", grant)
    assert (done.code, done.out) == (1, f"revoked: {grant}\n"), "the others go on"
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    done = sh("ls")
    assert (done.code, done.err) == (
        1,
        "knock.sh: the key is not accepted: it is wrong, disabled or another API's\n",
    )


@pytest.mark.parametrize(
    "words",
    [
        ["show"], ["show", "a", "b"], ["revoke"], ["ls", "x"], ["whoami", "x"], ["--nonsense"], ["--for"],
        ["ls", "--renews", "x"], ["revoke", "x", "--renews", "y"], ["--renews"],
        ["ls", "--for", "1h"], ["revoke", "x", "--source", "y"], ["bastion", "--all"], [""], ["a\nb"],
        ["--for", "a\tb"],
    ],
)  # fmt: skip
def test_misuse_exits_with_2_and_sends_nothing(
    sh: Run, double: Double, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    done = sh(*words)
    assert (done.code, done.out) == (2, "")
    assert "knock.sh --help" in done.err
    assert double.seen == []


def test_help_has_examples_and_needs_no_access(sh: Run) -> None:
    done = sh("ls", "--help")
    assert (done.code, done.err) == (0, "")
    assert "examples:\n  knock.sh bastion" in done.out


# ---------------------------------------------------------------------- where it cannot go


def test_no_answer_exits_with_3(sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.faults = ["drop"]
    done = sh("bastion")
    assert done.code == 3
    assert "look with knock.sh ls" in done.err
    double.faults = [(200, {}, b"<html>please log in</html>")]
    assert sh("bastion").code == 3
    double.faults = [(302, {"Location": f"{double.url}/whoami"}, b"")]
    assert sh("whoami").code == 3
    double.faults = [(404, {}, b"<html>nothing here</html>")]
    assert sh("whoami").code == 3
    double.faults = [(429, {}, {"message": "Too Many Requests"})]
    done = sh("whoami")
    assert (done.code, done.err) == (1, "knock.sh: the gateway says: Too Many Requests (429)\n")
    monkeypatch.setenv("KNOCK_URL", f"{double.url}/elsewhere")
    done = sh("ls")
    assert done.code == 3
    assert "Is the stage (like /prod) missing?" in done.err
    double.stop()
    assert sh("ls").code == 3


@pytest.mark.parametrize(
    "url",
    [
        "", "api.example.com", "http://api.example.com", "http://127.0.0.1.example.com/",
        "ftp://api.example.com", "https://user@api.example.com", "https://api.example.com/?x",
        "https://api.example.com/#x", "https:// x",
        'https://api.example.com/"',
    ],
)  # fmt: skip
def test_a_url_that_would_show_the_key_or_is_none_is_refused(
    sh: Run, home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("KNOCK_URL", url)
    monkeypatch.setenv("KNOCK_API_KEY", "k" * 30)
    done = sh("ls")
    assert done.code == 2
    assert "KNOCK_URL" in done.err


# ---------------------------------------------------------------------- the key


def test_key_and_url_come_from_files_that_only_their_owner_can_read(
    sh: Run, double: Double, home: Path
) -> None:
    folder = home / ".config" / "knock"
    folder.mkdir(parents=True)
    (folder / "url").write_text(double.url + "/knock\n")
    (folder / "key").write_text(double.keys["alice"] + "\n")
    for mode in (0o644, 0o640, 0o604, 0o620):
        (folder / "key").chmod(mode)
        done = sh("ls")
        assert done.code == 2
        assert f"chmod 600 {folder / 'key'}" in done.err
    assert double.seen == []
    (folder / "key").chmod(0o600)
    assert sh("ls").code == 0


def test_a_key_file_can_be_named(
    sh: Run, double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "a key"
    file.write_text(double.keys["bob"])  # without a line's end
    file.chmod(0o600)
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_KEY_FILE", str(file))
    assert json.loads(sh("whoami").out)["principal"]["name"] == "bob"
    file.unlink()
    assert "chmod 600 it" in sh("whoami").err


@pytest.mark.parametrize("key", ['a"b', "a\\b", "a b", "a\nheader: x"])
def test_a_key_that_is_none_is_refused_and_not_repeated(
    sh: Run, double: Double, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", key)
    done = sh("ls")
    assert done.code == 2
    assert key not in done.err
    assert double.seen == []


def test_the_key_is_in_no_process_list_and_in_no_environment_of_curl(
    shell: list[str], double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.faults = [10]
    with subprocess.Popen([*shell, str(SCRIPT), "bastion"], stdout=subprocess.PIPE) as running:
        wait_until(lambda: double.calls("POST") == 1)
        listed = subprocess.run(
            ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        curls = [line.split()[0] for line in listed.splitlines() if "curl" in line and double.url in line]
        environments = [
            Path(f"/proc/{pid}/environ").read_bytes() for pid in curls if Path(f"/proc/{pid}").exists()
        ]
        subprocess.run(["kill", *curls], check=True)
        running.wait(timeout=5)
    assert len(curls) == 1
    assert double.keys["alice"] not in listed
    for environment in environments:
        assert double.keys["alice"].encode() not in environment


def test_a_verbose_curlrc_does_not_print_the_key(sh: Run, as_alice: Api, home: Path) -> None:
    (home / ".curlrc").write_text("verbose\n")
    done = sh("whoami")
    assert (done.code, done.err) == (0, "")


# ---------------------------------------------------------------------- pending grants


def test_a_pending_grant_is_waited_for(sh: Run, double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])
    double.opens_after = 0.5
    began = time.monotonic()
    assert sh("bastion").out.startswith("open: bastion from")
    assert time.monotonic() - began < 3
    double.fails = "PoolExhausted: full"
    done = sh("bastion")
    assert (done.code, done.out) == (1, "")
    assert re.search(r"knock\.sh: grant \S+ is failed\n", done.err)


# ---------------------------------------------------------------------- the script itself


def test_shellcheck_finds_nothing() -> None:
    found = shutil.which("shellcheck")
    need(found, "shellcheck is not installed: apt install shellcheck")
    done = subprocess.run(
        ["shellcheck", SCRIPT],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_header_alone_is_enough_for_existing_users(api: Api, home: Path, spawn: Run) -> None:
    done = spawn("curl", "-s", "-H", f"x-api-key: {api.keys['alice']}", f"{api.url}/knock")
    grant = json.loads(done.out)
    assert (grant["status"], grant["source"]) == ("active", "203.0.113.7/32")
    assert [target["name"] for target in grant["targets"]] == ["bastion", "web"]
