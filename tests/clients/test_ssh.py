"""SSH that knocks by itself, with the real OpenSSH client and a real sshd behind a gate.

The gate stands for a security group: it lets a connection through if a rule of the target allows the address
that it comes from, and reads the rules anew for each connection.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import knock
from knock import network, sshconfig, state
from knock.errors import ConfigurationError, KnockError
from tests.clients.conftest import CLIENTS, Api, Result
from tests.clients.double import Double
from tests.conftest import program
from tests.waiting import wait_for

Run = Callable[..., Result]


@pytest.fixture
def as_alice(api: Api, home: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("KNOCK_URL", api.url)
    monkeypatch.setenv("KNOCK_API_KEY", api.keys["alice"])
    return api


@pytest.fixture
def on_double(double: Double, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK_URL", double.url)
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["alice"])


# ---------------------------------------------------------------------- a server behind a gate


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A real sshd on a free port, for the user who runs the tests. Gives the port and the user's key file."""
    hint = "apt install openssh-server openssh-client"
    server, keygen = program("sshd", hint, "/usr/sbin/sshd"), program("ssh-keygen", hint)
    program("ssh", hint)
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = folder / "sshd_config"
    settings.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nMaxStartups 100\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it when root starts it
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([server, "-D", "-e", "-f", settings], stderr=log)
    try:
        wait_for(lambda: _answers(port) or running.poll() is not None)
        assert running.poll() is None, (folder / "log").read_text()
        yield port, folder / "user"
    finally:
        running.terminate()
        running.wait(timeout=5)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Gate:
    """Passes connections on to a port while `allows()` says so, and drops them otherwise."""

    def __init__(self, to: int, allows: Callable[[], bool]) -> None:
        self.to = to
        self.allows = allows
        self.passed = 0
        self.dropped = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if not self.allows():
                self.dropped += 1
                return
            self.passed += 1
            with socket.create_connection(("127.0.0.1", self.to)) as server:
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
                self._pump(client, server)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate(sshd: tuple[int, Path], as_alice: Api) -> Iterator[Gate]:
    barrier = Gate(sshd[0], lambda: as_alice.lets_in("203.0.113.7/32", "bastion"))
    yield barrier
    barrier.server.close()


@pytest.fixture
def ssh(gate: Gate, sshd: tuple[int, Path], home: Path, spawn: Run) -> Run:
    """Run `ssh bastion …` with a configuration of `knock ssh-config` above the host's own settings."""

    def run(config: str, *words: str) -> Result:
        knocking, settings = home / "knock.conf", home / "ssh_config"
        knocking.write_text(config)
        settings.write_text(
            f"Include {knocking}\n"
            f"Host bastion\n    HostName 127.0.0.1\n    Port {gate.port}\n    User {getpass.getuser()}\n"
            f"    IdentityFile {sshd[1]}\n    IdentitiesOnly yes\n    IdentityAgent none\n    BatchMode yes\n"
            "    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n"
            "    ConnectTimeout 30\n"
        )
        return spawn("ssh", "-F", str(settings), "bastion", *words)

    return run


@pytest.mark.parametrize("variant", [[], ["--proxy-command"]])
def test_ssh_knocks_by_itself_and_gets_through_the_gate(
    ssh: Run, spawn: Run, gate: Gate, as_alice: Api, variant: list[str]
) -> None:
    assert ssh("", "echo inside").code == 255, "without a knock the gate is shut"
    assert (gate.passed, gate.dropped) == (0, 1)

    config = spawn("knock", "ssh-config", "bastion", "--target", "bastion", "--for", "1h", *variant).out
    result = ssh(config, "echo inside")
    assert (result.code, result.out) == (0, "inside\n"), result
    assert result.err.startswith("knock: open: bastion (22/tcp) from 203.0.113.7/32 until ")

    result = ssh(config, "cat; exit 7")
    assert (result.code, result.out, result.err) == (7, "", ""), (
        "the second time nothing is sent and nothing printed"
    )
    with as_alice.client("alice") as client:
        (grant,) = client.grants()
        assert gate.passed == 2
        client.revoke(grant.id)
        assert ssh("", "echo inside").code == 255, "after the revocation the gate is shut"


def test_a_handed_over_connection_carries_much_data(ssh: Run, spawn: Run) -> None:
    config = spawn("knock", "ssh-config", "bastion", "--proxy-command").out
    result = ssh(config, "head -c 3000000 /dev/zero | tr '\\0' x")
    assert (result.code, len(result.out)) == (0, 3_000_000), result.err


@pytest.mark.parametrize("variant", [[], ["--proxy-command"]])
def test_ssh_tries_all_the_same_when_the_knock_is_refused(
    ssh: Run, spawn: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch, variant: list[str]
) -> None:
    gate.allows = lambda: True  # as a static rule would
    monkeypatch.setenv("KNOCK_API_KEY", "no-such-key-00000000")
    config = spawn("knock", "ssh-config", "bastion", *variant).out
    result = ssh(config, "echo inside")
    assert (result.code, result.out) == (0, "inside\n"), result
    assert result.err == "knock: The key is not accepted: it is wrong, disabled or another API's\n"


# ---------------------------------------------------------------------- the configuration


def test_the_match_block_names_the_program_the_host_and_the_options(
    spawn: Run, home: Path, programs: Path
) -> None:
    options = ["--profile", "work", "--target", "bastion", "--for", "8h", "--reason", "its 100%"]
    result = spawn("knock", "ssh-config", "bastion", *options)
    assert result.out.splitlines()[-1] == (
        f'Match host bastion exec "{programs}/knock ssh-hook --profile work --for 8h '
        "--reason 'its 100%%' --target bastion --host bastion\""
    )
    several = spawn("knock", "ssh-config", "bastion", "*.example.com").out
    assert 'Match host bastion,*.example.com exec "' in several
    assert "--host" not in several, "the host's name could be any that matches the pattern"
    proxy = spawn("knock", "ssh-config", "--proxy-command", "a", "b").out
    assert (
        f"Host a b\n    ProxyCommand {programs}/knock ssh-proxy -- %h %p\n    ProxyUseFdpass yes\n" in proxy
    )


@pytest.mark.parametrize("host", ["a;b", "a b", "$(id)", '"', "-oProxyCommand=x", "a%h"])
def test_a_host_that_a_shell_could_read_otherwise_is_refused(run: Run, host: str) -> None:
    result = run("ssh-config", "--", host)
    assert (result.code, result.out) == (2, "")


@pytest.mark.parametrize("host", ["*", "*.example.com", "web?"])
def test_a_pattern_is_refused_where_ssh_would_put_any_name_into_a_command(run: Run, host: str) -> None:
    """Break it: accept a pattern with --proxy-command too."""
    result = run("ssh-config", "--proxy-command", "bastion", host)
    assert (result.code, result.out) == (2, "")
    assert "takes no pattern" in result.err
    assert run("ssh-config", host).code == 0


def test_a_double_quote_is_refused_where_ssh_cannot_write_it(run: Run) -> None:
    assert "leave out" in run("ssh-config", "bastion", "--reason", 'say "hi"').err
    assert "leave out" in run("ssh-config", "bastion", "--reason", "it's").err, "a shell would need one"


def test_started_as_a_module_the_configuration_starts_it_without_the_current_folder(run: Run) -> None:
    command = f"{sys.executable} -I {CLIENTS}/knock/__main__.py ssh-hook"
    assert command in run("ssh-config", "bastion").out


def run_ssh(spawn: Run, home: Path, double: Double, *words: str) -> Result:
    """Run ssh with the hook for bastion, at a port where nothing listens."""
    config = home / "ssh_config"
    config.write_text(
        spawn("knock", "ssh-config", "bastion", "--target", "bastion").out
        + "Host *\n    HostName 127.0.0.1\n    Port 1\n    BatchMode yes\n"
    )
    return spawn("ssh", "-F", str(config), *words)


@pytest.mark.parametrize(
    "words",
    [
        ["-G", "bastion"],
        ["bastion", "-G"],
        ["-p", "22", "-Gv", "bastion"],
        ["-O", "check", "bastion"],
        ["-S", "/nonexistent", "-Ocheck", "bastion", "true"],
        ["-G", "elsewhere"],
        ["elsewhere"],
    ],
)
def test_ssh_that_does_not_connect_or_goes_to_other_hosts_opens_nothing(
    spawn: Run, home: Path, double: Double, on_double: None, words: list[str]
) -> None:
    """Mutation: clients/knock/sshconfig.py: `if only_asks():` -> `if False:`"""
    program("ssh", "apt install openssh-client")
    result = run_ssh(spawn, home, double, *words)
    assert double.requests == [], result
    assert "Traceback" not in result.err


def test_an_ssh_that_connects_knocks_whatever_its_command_looks_like(
    spawn: Run, home: Path, double: Double, on_double: None
) -> None:
    program("ssh", "apt install openssh-client")
    for words in (["bastion", "ls", "-G"], ["-o", "LogLevel=ERROR", "-l", "G", "bastion"]):
        double.grants.clear(), double.requests.clear()
        state.forget(url=double.url)
        run_ssh(spawn, home, double, *words)
        assert len(double.grants) == 1, words


def test_on_a_mac_the_ancestors_are_read_from_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"-p 10": " 9 /bin/zsh -c knock ssh-hook", "-p 9": "1 /usr/bin/ssh -G bastion"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "getppid", lambda: 10)
    monkeypatch.setattr(network, "run", lambda *words: outputs.get(" ".join(words[-2:]), ""))
    assert sshconfig.only_asks()
    outputs["-p 9"] = "1 /usr/bin/ssh bastion"
    assert not sshconfig.only_asks()
    outputs.clear()
    assert not sshconfig.only_asks()
    monkeypatch.setattr(sys, "platform", "win32")
    assert not sshconfig.only_asks()


def test_a_configuration_of_the_single_file_starts_that_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "knock.pyz"
    archive.write_bytes(b"")
    monkeypatch.setattr(sshconfig, "__file__", str(archive / "knock" / "sshconfig.py"))
    assert f"{sys.executable} -I {archive} ssh-hook" in run("ssh-config", "bastion").out


# ---------------------------------------------------------------------- the hook


def test_a_known_grant_costs_no_call_and_no_name(
    run: Run, double: Double, on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("bastion", "--for", "1h").code == 0

    def forbidden(*args: Any, **more: Any) -> Any:
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    for name in [name for name in sys.modules if name.startswith("knock.")]:
        if name not in ("knock.cli", "knock.errors", "knock.screen"):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(knock, name.partition(".")[2], raising=False)
    result = run("ssh-hook", "--target", "bastion", "--host", "bastion")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert "knock.transport" not in sys.modules, "not even the client was loaded"


def test_a_grant_that_does_not_cover_the_targets_is_not_enough(
    run: Run, double: Double, on_double: None
) -> None:
    run("bastion")
    assert run("ssh-hook").err.startswith("knock: open: bastion (22/tcp), web"), "all that the key may open"
    assert run("ssh-hook").err == ""
    assert run("ssh-hook", "--target", "web").err == ""
    assert double.calls("POST") == 2


def test_a_renewed_grant_is_used_as_the_old_one_was(run: Run, double: Double, on_double: None) -> None:
    run("bastion", "--for", "1h")
    new = json.loads(run("renew", "--json").out)["grants"][0]["id"]
    entry = state.known(double.url, ["bastion"], network.fingerprint())
    assert entry is not None
    assert entry["id"] == new
    assert run("ssh-hook", "--target", "bastion").err == ""
    assert double.calls("POST") == 2


def test_a_superseded_grant_is_no_longer_used(run: Run, double: Double, on_double: None) -> None:
    run("bastion", "--for", "8h")
    longer = run("ls", "-q").out.strip()
    run("web", "--for", "8h")
    assert run("ssh-hook", "--target", "web").err == "", "the grant of another target stays open"
    shorter = run("-q", "bastion", "--for", "10m").out.strip()
    run("revoke", shorter)
    assert run("ssh-hook", "--target", "bastion").err == "", "the shorter grant had superseded none"
    shorter = run("-q", "bastion", "--for", "10m", "--renews", longer).out.strip()
    run("revoke", shorter)
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open")


def test_a_grant_superseded_with_a_named_source_is_no_longer_used(
    run: Run, double: Double, on_double: None
) -> None:
    run("bastion", "--for", "8h")
    run("bastion", "--for", "10m", "--source", f"{double.source}/32", "--renews", run("ls", "-q").out.strip())
    assert state.known(double.url, ["bastion"], network.fingerprint()) is None


def test_the_hook_renews_only_grants_of_a_hook(
    run: Run, double: Double, on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("bastion", "--for", "10m")
    run("-q", "web", "--for", "10m")
    real, later = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + later[0])
    later[0] = 550  # the margin of the last minute
    hook = ["ssh-hook", "--target", "bastion", "--for", "10m"]
    assert run(*hook).err.startswith("knock: open")
    first = list(double.grants.values())[-1]
    assert first["renews"] is None, "a grant opened by hand is not renewed"
    later[0] = 1100
    assert run(*hook).err.startswith("knock: open")
    second = list(double.grants.values())[-1]
    assert second["renews"] == first["id"]
    later[0] = 1650
    assert run(*hook[:-1], "5s").err.startswith("knock: open")
    assert list(double.grants.values())[-1]["renews"] is None, "that would end before the old grant"
    assert run("ssh-hook", "--target", "web").err.startswith("knock: open")
    del double.grants[list(double.grants)[-1]]
    later[0] += 86_400 - 30
    result = run("ssh-hook", "--target", "web")
    assert result.err.startswith("knock: open"), "a grant that the API no longer knows is no error"


def test_another_network_or_a_revocation_makes_the_hook_knock(
    run: Run, double: Double, on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = run("-q", "bastion").out.strip()
    run("revoke", grant)
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open")
    monkeypatch.setattr(network, "fingerprint", lambda: "a café")
    assert run("ssh-hook", "--target", "bastion").err.startswith("knock: open")
    assert double.calls("POST") == 3


def test_a_grant_for_another_source_is_not_used_for_this_network(
    run: Run, double: Double, monkeypatch: pytest.MonkeyPatch, on_double: None
) -> None:
    monkeypatch.setenv("KNOCK_API_KEY", double.keys["ci"])
    run("bastion", "--source", "198.51.100.7/32")
    run("ssh-hook", "--target", "bastion")
    assert double.calls("POST") == 2


def test_a_network_that_changes_during_the_knock_is_not_remembered(
    run: Run, double: Double, on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = iter(["home", "a café", "a café"])
    monkeypatch.setattr(network, "fingerprint", lambda: next(fingerprints))
    run("bastion")
    assert state.known(double.url, ["bastion"], "home") is None


def test_many_hooks_at_once_knock_once(home: Path, double: Double, on_double: None) -> None:
    double.faults = [0.3]
    hooks = [
        subprocess.Popen(["knock", "ssh-hook", "--target", "bastion"], stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    messages = [hook.communicate(timeout=20)[1] for hook in hooks]
    assert [hook.returncode for hook in hooks] == [0] * 8
    assert double.calls("POST") == 1
    assert sum(b"open: bastion" in text for text in messages) == 1


def test_the_hooks_exit_code_says_why_it_failed(
    run: Run, double: Double, on_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("ssh-hook", "--target", "nosuch").code == 1
    double.stop()
    assert run("ssh-hook", "--target", "bastion").code == 3
    monkeypatch.delenv("KNOCK_URL")
    assert run("ssh-hook").code == 2


# ---------------------------------------------------------------------- the connection passed to ssh


def test_addresses_of_the_family_that_was_let_in_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    families: list[str] = []

    class Recorded(socket.socket):
        def __init__(self, family: int = -1, *more: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                families.append("IPv6")
                raise OSError(97, "Address family not supported by protocol")
            families.append("IPv4")
            super().__init__(family, *more, **named)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        addresses = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(addresses))
        monkeypatch.setattr(socket, "socket", Recorded)
        for source, order in (
            ("203.0.113.7/32", ["IPv4", "IPv4"]),
            ("2001:db8::7/128", ["IPv6", "IPv4", "IPv4"]),
            (None, ["IPv6", "IPv4", "IPv4"]),
        ):
            families.clear()
            with sshconfig.connect("bastion", port, source) as connection:
                assert connection.getpeername() == ("127.0.0.1", port), (
                    "after a closed port the next address is tried"
                )
            assert families == order
        del addresses[1:]
        with pytest.raises(KnockError, match=r"\(::1: Address family not supported by protocol\)"):
            sshconfig.connect("bastion", port, None)


def test_a_host_that_cannot_be_reached_is_named(run: Run, double: Double, on_double: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = run("ssh-proxy", "--target", "bastion", "--", "127.0.0.1", str(port))
    assert result.code == 1
    assert f"127.0.0.1 port {port} does not take the connection (127.0.0.1: Connection refused)" in result.err
    with pytest.raises(KnockError, match=r"the name no-such-host\.invalid is not known"):
        sshconfig.connect("no-such-host.invalid", 22, None)


def test_a_proxy_command_without_fdpass_says_what_is_missing(
    on_double: None, spawn: Run, sshd: tuple[int, Path]
) -> None:
    result = spawn("knock", "ssh-proxy", "--", "127.0.0.1", str(sshd[0]))
    assert result.code == 2
    assert "set ProxyUseFdpass yes" in result.err


def test_a_system_without_fd_passing_is_referred_to_the_match_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "send_fds")
    with pytest.raises(ConfigurationError, match="use the Match variant"):
        sshconfig.hand_over(socket.socket())


def test_without_settings_the_proxy_command_does_not_connect(run: Run, home: Path) -> None:
    assert run("ssh-proxy", "--", "127.0.0.1", "22").code == 2
