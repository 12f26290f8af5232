"""The request layer when calls fail: what it retries, how long it waits, and its errors."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from knock import (
    AnswerLost,
    CannotReach,
    Client,
    ConfigurationError,
    KnockError,
    PoolExhausted,
    Problem,
    Refusal,
    Throttled,
    Unavailable,
    UnexpectedAnswer,
    transport,
)
from tests.clients.double import Double, Held

BUSY = {
    "type": "urn:knock:problem:trail-unavailable",
    "title": "Try again",
    "status": 503,
    "detail": "SimpleDB",
}


@pytest.fixture
def client(double: Double, home: Path) -> Iterator[Client]:
    with Client(double.url, double.keys["alice"], timeout=1.0, connect_timeout=1.0) as alice:
        yield alice


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which then take no time."""
    seconds: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", seconds.append)
    return seconds


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_get_is_retried_after_a_5xx(
    double: Double, client: Client, pauses: list[float], status: int
) -> None:
    double.faults = [(status, {}, BUSY | {"status": status})] * 2
    assert client.whoami().principal.name == "alice"
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1] < 2


def test_a_call_is_tried_three_times(double: Double, client: Client, pauses: list[float]) -> None:
    double.faults = [(503, {}, BUSY)] * 4
    with pytest.raises(Unavailable, match="SimpleDB"):
        client.whoami()
    assert double.calls("GET") == 3


def test_retry_after_is_honoured(
    double: Double, client: Client, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(transport.time, "time", lambda: now)
    at = datetime.fromtimestamp(now, timezone.utc) + timedelta(seconds=10)
    double.faults = [
        (503, {"Retry-After": "3"}, BUSY),
        (503, {"Retry-After": format_datetime(at, usegmt=True)}, BUSY),
    ]
    client.whoami()
    assert pauses == [3, 10]


def test_after_a_long_retry_after_the_call_is_not_retried(
    double: Double, client: Client, pauses: list[float]
) -> None:
    double.faults = [(503, {"Retry-After": "3600"}, BUSY)]
    with pytest.raises(Unavailable) as caught:
        client.whoami()
    assert caught.value.retry_after == 3600
    assert (pauses, double.calls("GET")) == ([], 1)


@pytest.mark.parametrize("value", ["soon", "-1", "Mon, 99 Nov 2026 00:00:00 GMT"])
def test_a_malformed_retry_after_is_ignored(
    double: Double, client: Client, pauses: list[float], value: str
) -> None:
    double.faults = [(503, {"Retry-After": value}, BUSY)]
    client.whoami()
    assert 0 < pauses[0] < 1


def test_a_knock_is_retried_only_where_the_api_says_that_nothing_was_opened(
    double: Double, client: Client, pauses: list[float]
) -> None:
    double.faults = [(503, {"Retry-After": "1"}, BUSY), (429, {}, {"message": "Too Many Requests"})]
    assert client.knock("bastion").status == "active"
    assert double.calls("POST") == 3
    for status, more, answer in (
        (503, {}, BUSY),
        (500, {}, BUSY | {"grant_id": "a_b"}),
    ):
        double.faults, double.requests = [(status, more, answer)], []
        with pytest.raises(Unavailable):
            client.knock("bastion")
        assert double.calls("POST") == 1


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (
            200,
            b"<html>a proxy</html>",
            "that is not the Knock API",
        ),
        (201, b"[]", "that is not the Knock API"),
        (201, {"message": "hello"}, "the answer is not a grant as this client knows it: 'id' is missing"),
        (
            500,
            {"title": "A fault", "detail": "its log says more"},
            "answered 500: A fault: its log says more",
        ),
        (502, b"<html>bad gateway</html>", "answered 502 with"),
        (502, {"message": "Internal server error"}, "answered 502: The gateway says: Internal server error"),
        (504, {"message": "Endpoint timed out"}, "answered 504: The gateway says: Endpoint timed out"),
    ],
)
def test_after_an_answer_that_is_not_the_apis_a_knock_may_have_opened(
    double: Double, client: Client, pauses: list[float], status: int, answer: Any, message: str
) -> None:
    """Break it: raise it as a refusal, or as a call that did not reach the API."""
    double.faults = [(status, {}, answer)]
    with pytest.raises(
        (AnswerLost, UnexpectedAnswer), match="may have been made: look with `knock ls`"
    ) as caught:
        client.knock("bastion")
    assert message in str(caught.value)
    assert (double.calls("POST"), caught.value.exit_code) == (1, 3)


def test_a_knock_that_did_not_reach_the_api_is_not_reported_as_perhaps_open(
    double: Double, client: Client
) -> None:
    for status, answer in ((302, b""), (403, b"<html>no</html>"), (407, b"")):
        double.faults = [(status, {}, answer)]
        with pytest.raises(UnexpectedAnswer, match="that is not the Knock API") as caught:
            client.knock("bastion")
        assert "may have been made" not in str(caught.value)


def test_the_id_of_a_grant_is_read_from_a_malformed_answer(double: Double, client: Client) -> None:
    """Break it: read the id only with all other fields."""
    double.faults = [(201, {}, {"id": "a_b", "status": "active"}), (201, {}, {"id": "$(id)"})]
    with pytest.raises(UnexpectedAnswer, match="end it with `knock revoke a_b`") as caught:
        client.knock("bastion")
    assert caught.value.grant_id == "a_b"
    with pytest.raises(UnexpectedAnswer, match="may have been made") as caught:
        client.knock("bastion")
    assert caught.value.grant_id is None


def test_a_used_up_quota_is_not_retried(double: Double, client: Client, pauses: list[float]) -> None:
    double.faults = [(429, {}, {"message": "Limit Exceeded"})]
    with pytest.raises(Throttled, match="Limit Exceeded"):
        client.whoami()
    assert double.calls("GET") == 1


def test_a_refusal_is_not_retried(double: Double, client: Client, pauses: list[float]) -> None:
    full = {
        "type": "urn:knock:problem:pool-exhausted",
        "title": "No room left",
        "status": 409,
        "detail": "bastion",
    }
    double.faults = [
        (409, {}, full),
        (409, {}, full | {"type": "urn:knock:problem:grant-ended"}),
        (418, {}, full),
    ]
    with pytest.raises(PoolExhausted, match="No room left: bastion"):
        client.knock("bastion")
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            client.knock("bastion")
        assert type(caught.value) in (Refusal, PoolExhausted)
    assert pauses == []


def test_a_get_whose_answer_is_lost_is_retried_and_a_knock_is_not(
    double: Double, client: Client, pauses: list[float]
) -> None:
    double.faults = ["drop", "drop"]
    assert client.whoami().principal.name == "alice"
    double.faults = ["drop"]
    with pytest.raises(
        AnswerLost, match=r"may have been made: look with `knock ls`; another knock opens one beside"
    ) as caught:
        client.knock("bastion")
    assert caught.value.exit_code == 3
    assert double.calls("POST") == 1


def test_a_kept_connection_that_the_server_closed_counts_as_no_try(
    double: Double, client: Client, pauses: list[float]
) -> None:
    client.whoami()

    def answer_and_close(handler: BaseHTTPRequestHandler) -> None:
        double.send(handler, 200, {}, double.whoami("alice"))
        handler.close_connection = True

    double.faults = [answer_and_close]
    client.whoami()
    threading.Event().wait(0.05)  # until the other side has closed
    client.whoami()
    assert pauses == []


def test_a_refused_connection_is_retried_and_named(home: Path, pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/prod", "k" * 30)
    with pytest.raises(CannotReach, match=f"127.0.0.1:{port} does not take the connection") as caught:
        client.knock("bastion")
    assert not isinstance(caught.value, AnswerLost)
    assert len(pauses) == 2


# ---------------------------------------------------------------------- time limits


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time limits that were set for whole answers, in seconds."""
    seconds: list[float] = []

    class Timer(threading.Timer):
        def __init__(self, interval: float, function: Callable[[], None]) -> None:
            seconds.append(interval)
            super().__init__(interval, function)

    monkeypatch.setattr(transport.threading, "Timer", Timer)
    return seconds


def test_no_answer_in_time_is_an_error_and_not_retried(
    double: Double, client: Client, alarms: list[float]
) -> None:
    held = Held()
    double.faults = [held]
    with pytest.raises(AnswerLost, match="did not answer within 1 s"):
        client.whoami()
    assert held.waiting, "it waited for the answer"
    held.release()
    assert alarms == [1]
    assert double.calls("GET") == 1


def test_an_answer_that_drips_ends_at_the_same_limit(
    double: Double, client: Client, alarms: list[float]
) -> None:
    """The answer takes a minute, with less than a second between two bytes. Its body is no JSON."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
            for _ in range(600):
                handler.wfile.write(b" ")
                time.sleep(0.1)

    double.faults = [drip]
    with pytest.raises(AnswerLost, match="did not answer within 1 s"):
        client.whoami()
    assert alarms == [1]


def test_an_answer_that_breaks_off_is_lost(double: Double, client: Client, pauses: list[float]) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id"')
        handler.close_connection = True

    double.faults = [half] * 3
    with pytest.raises(AnswerLost, match="broke off"):
        client.whoami()
    assert double.calls("GET") == 3


def test_a_connection_that_is_not_accepted_times_out(home: Path, pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        # Fill the queue of a server that never accepts: the next connection waits for ever.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(server.getsockname())
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", "k" * 30, connect_timeout=0.2)
        with pytest.raises(CannotReach, match="connecting timed out"):
            client.whoami()
        for filler in fillers:
            filler.close()


# ---------------------------------------------------------------------- answers that are not the API's


def test_a_login_page_of_a_hotspot_is_not_taken_for_the_api(double: Double, client: Client) -> None:
    double.faults = [(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")]
    with pytest.raises(UnexpectedAnswer, match=r"answered 200 with text/html.*hotspot") as caught:
        client.whoami()
    assert caught.value.exit_code == 3


def test_an_answer_nested_without_end_is_not_the_apis(double: Double, client: Client) -> None:
    double.faults = [(200, {}, b'{"a":' * 200_000)]
    with pytest.raises(UnexpectedAnswer):
        client.whoami()


def test_a_redirect_is_not_followed(double: Double, client: Client) -> None:
    for status in (301, 307):
        double.faults = [
            (status, {"Location": f"http://localhost:{double.server.server_port}/prod/whoami"}, b"")
        ]
        with pytest.raises(UnexpectedAnswer, match="a redirect to localhost"):
            client.whoami()
    double.faults = [(302, {}, {"message": "moved"})]
    with pytest.raises(UnexpectedAnswer, match="a redirect"):
        client.whoami()
    assert double.calls("GET") == 3, "the key went nowhere else"


def test_an_answer_without_end_is_not_read_to_its_end(
    double: Double, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGEST_ANSWER", 1000)
    double.faults = [(200, {}, b"x" * 5000)]
    with pytest.raises(UnexpectedAnswer, match="more than 1000 bytes"):
        client.whoami()
    assert client.whoami().principal.name == "alice", "the remaining bytes are not read as the next answer"


def test_nonsense_instead_of_http_is_a_lost_answer(
    double: Double, client: Client, pauses: list[float]
) -> None:
    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        handler.close_connection = True

    double.faults = [nonsense] * 3
    with pytest.raises(AnswerLost):
        client.whoami()


def test_other_answers_of_the_gateway_keep_their_message(double: Double, client: Client) -> None:
    double.faults = [(400, {}, {"message": "Bad Request Exception"})]
    with pytest.raises(Problem, match="The gateway says: Bad Request Exception"):
        client.whoami()


# ---------------------------------------------------------------------- URLs and keys


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("api.example.com", "is not a URL"),
        ("ftp://api.example.com", "is not a URL"),
        ("https://", "is not a URL"),
        ("https://api.example.com:port/", "is not a URL"),
        ("https://api.example.com/pröd", "is not a URL"),
        ("https://api.example.com/a b", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("http://api.example.com/prod", "use https://"),
        ("http://127.0.0.1.example.com/", "use https://"),
        ("https://api.example.com/prod?key=1", "has no place in it"),
        ("https://api.example.com/prod#x", "has no place in it"),
    ],
)
def test_an_unusable_url_is_refused_before_anything_is_sent(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Client(url, "k" * 30)


@pytest.mark.parametrize("key", ["", "  ", "two words", "line\nbreak: x", "ключ"])
def test_a_key_that_is_no_valid_header_is_refused_and_not_printed(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client("https://api.example.com", key)
    assert not key.strip() or key not in str(caught.value)


def test_plain_http_is_for_this_machine_only() -> None:
    for url in ("http://localhost:1/", "http://127.0.0.1:1", "http://[::1]:1"):
        Client(url, "k" * 30)


# ---------------------------------------------------------------------- names, certificates, proxies


def test_an_unknown_name_is_reported_as_such(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **more: Any) -> Any:
        raise socket.gaierror(number, "whatever the system says")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    client = Client("https://api.example.com/prod", "k" * 30)
    number = socket.EAI_NONAME
    with pytest.raises(CannotReach, match=r"API's name api\.example\.com is not known to DNS"):
        client.whoami()
    number = socket.EAI_AGAIN
    with pytest.raises(CannotReach, match="is this machine offline"):
        client.whoami()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.net:3128")
    number = socket.EAI_NONAME
    with pytest.raises(CannotReach, match=r"proxy's name proxy\.example\.net is not known"):
        client.whoami()
    with pytest.raises(CannotReach, match="is not known to DNS"):
        Client("https://" + "a" * 70 + ".example.com", "k" * 30).whoami()


def test_a_missing_route_is_reported_as_such(
    home: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def unreachable(*args: Any, **more: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(CannotReach, match=r"cannot be reached \(Network is unreachable\)"):
        Client("https://api.example.com/prod", "k" * 30).whoami()


Certificate = Callable[..., Path]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Makes certificates: PEM files with a key, and the authority's beside them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.now(timezone.utc)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    ca_key = ec.generate_private_key(ec.SECP256R1())
    # Python 3.13 and later require this extension: https://docs.python.org/3/library/ssl.html#ssl.VERIFY_X509_STRICT
    by_ca = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    off = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"),
        False,
    )
    for_signing = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, decipher_only=False, **off
    )
    ca = (
        x509.CertificateBuilder()
        .subject_name(named("test authority"))
        .issuer_name(named("test authority"))
        .public_key(ca_key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(for_signing, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))

    def make(name: str = "localhost", first: int = -1, last: int = 1, strict: bool = True) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=first))
            .not_valid_after(now + timedelta(days=last))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        if strict:
            builder = builder.add_extension(by_ca, critical=False)
        signed = builder.sign(ca_key, hashes.SHA256())
        path = folder / f"{name}{first}{last}{strict}.pem"
        path.write_bytes(
            signed.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path

    return make


@contextmanager
def over_tls(double: Double, pem: Path) -> Iterator[str]:
    """Serve the double over TLS; gives the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    double.server.socket = context.wrap_socket(double.server.socket, server_side=True)
    yield double.url.replace("http://127.0.0.1", "https://localhost")


def test_https_works_and_the_key_is_sent_inside(
    double: Double, home: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(pem.with_name("ca.pem")))
    with over_tls(double, pem) as url, Client(url, double.keys["alice"]) as client:
        assert client.knock("bastion").status == "active"
        assert client.whoami().principal.name == "alice"


@pytest.mark.parametrize(
    ("options", "trusted", "match"),
    [
        (
            {"first": 2, "last": 3},
            True,
            r"not valid yet, and this machine's clock says 20\d\d-.*set the clock",
        ),
        ({"first": -3, "last": -2}, True, r"no longer valid, and this machine's clock says 20\d\d-"),
        ({"name": "other.example.com"}, True, "is not for localhost"),
        ({}, False, "signed by nobody this machine trusts.*SSL_CERT_FILE"),
    ],
)
def test_each_error_of_a_certificate_is_explained(
    double: Double,
    home: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    trusted: bool,
    match: str,
) -> None:
    pem = certificate(**options)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem.with_name("ca.pem")))
    with over_tls(double, pem) as url, pytest.raises(CannotReach, match=match) as caught:
        Client(url, "k" * 30).whoami()
    assert not caught.value.transient
    assert double.requests == [], "nothing was sent"


@pytest.fixture
def as_python_3_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are checked as strictly as Python 3.13 does by itself."""
    real = ssl.create_default_context

    def strict(*args: Any, **more: Any) -> ssl.SSLContext:
        context = real(*args, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


def test_an_older_authority_under_stricter_checks_is_an_error_that_names_the_lenient_setting(
    double: Double,
    home: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    as_python_3_13: None,
) -> None:
    pem = certificate(strict=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem.with_name("ca.pem")))
    with over_tls(double, pem) as url:
        with pytest.raises(CannotReach, match=r"Missing Authority Key Identifier\).*KNOCK_TLS_LENIENT=1"):
            Client(url, "k" * 30).whoami()
        assert double.requests == []
        monkeypatch.setenv("KNOCK_TLS_LENIENT", "1")
        with Client(url, double.keys["alice"]) as client:
            assert client.whoami().principal.name == "alice"


@pytest.mark.parametrize("options", [{"first": -3, "last": -2}, {"name": "other.example.com"}])
def test_the_lenient_setting_leaves_out_no_other_check(
    double: Double,
    home: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    as_python_3_13: None,
    options: dict[str, Any],
) -> None:
    pem = certificate(**options)
    monkeypatch.setenv("KNOCK_TLS_LENIENT", "1")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem.with_name("ca.pem")))
    with (
        over_tls(double, pem) as url,
        pytest.raises(CannotReach, match=r"no longer valid|is not for localhost"),
    ):
        Client(url, "k" * 30).whoami()
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with pytest.raises(CannotReach):
        Client(url, "k" * 30).whoami()
    assert double.requests == []


def test_a_certificate_setting_without_certificates_is_named(
    double: Double,
    home: Path,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pem = certificate()
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    with over_tls(double, pem) as url:
        for setting, why in (
            (tmp_path / "misspelt.pem", "No such file or directory"),
            (empty, "holds no certificate"),
            (tmp_path, "Is a directory"),
        ):
            monkeypatch.setenv("SSL_CERT_FILE", str(setting))
            with pytest.raises(CannotReach, match=f"SSL_CERT_FILE names '{setting}'.*{why}.*unset it"):
                Client(url, "k" * 30).whoami()
        monkeypatch.delenv("SSL_CERT_FILE")
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
        with pytest.raises(CannotReach, match=r"SSL_CERT_DIR names .*nowhere', which is no folder"):
            Client(url, "k" * 30).whoami()


def test_a_port_that_speaks_no_tls_is_reported_as_such(double: Double, home: Path) -> None:
    url = double.url.replace("http://", "https://")
    with pytest.raises(CannotReach, match="does not speak TLS"):
        Client(url, "k" * 30).whoami()


class Proxy:
    """An HTTP proxy that opens tunnels, or gives another answer."""

    def __init__(self, answer: str = "200 Connection established") -> None:
        self.answer = answer
        self.requests: list[str] = []
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
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(4096)
            self.requests.append(request.decode())
            client.sendall(f"HTTP/1.1 {self.answer}\r\n\r\n".encode())
            if not self.answer.startswith("200"):
                return
            host, port = request.split()[1].decode().rsplit(":", 1)
            with socket.create_connection((host, int(port))) as server:
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
                self._pump(client, server)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.close()


def test_a_proxy_tunnels_and_never_sees_the_key(
    double: Double, home: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(pem.with_name("ca.pem")))
    with Proxy() as proxy, over_tls(double, pem) as url:
        monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        with Client(url, double.keys["alice"]) as client:
            assert client.whoami().principal.name == "alice"
            assert client.path is not None
            assert client.path.proxy == f"127.0.0.1:{proxy.port}"
        assert len(proxy.requests) == 1
        assert "proxy-authorization: Basic dXNlcjpwQHNz" in proxy.requests[0]
        assert double.keys["alice"] not in proxy.requests[0]
        monkeypatch.setenv("no_proxy", "localhost")
        with Client(url, double.keys["alice"]) as client:
            client.whoami()
            assert client.path is not None
            assert client.path.proxy is None
        assert len(proxy.requests) == 1


def test_plain_http_to_this_machine_goes_through_no_proxy(
    double: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, Client(double.url, double.keys["alice"]) as client:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert client.whoami().principal.name == "alice"
        assert proxy.requests == [], "it would have seen the key in clear"


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            "407 Proxy Authentication Required",
            r"wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@127",
        ),
        ("403 Forbidden", "will not connect to api.example.com:443: 403 Forbidden"),
    ],
)
def test_a_proxy_that_refuses_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, match: str
) -> None:
    with Proxy(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        with pytest.raises(CannotReach, match=match) as caught:
            Client("https://api.example.com/prod", "k" * 30).whoami()
        assert f"127.0.0.1:{proxy.port}" in str(caught.value)
        assert len(proxy.requests) == 1, "it is not retried"


def test_a_proxy_that_is_not_there_is_named_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hidden@127.0.0.1:{port}")
    with pytest.raises(CannotReach, match=f"the proxy 127.0.0.1:{port} does not take") as caught:
        Client("https://api.example.com/prod", "k" * 30).whoami()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("setting", ["socks5://127.0.0.1:1080", "https://proxy:3128", "http://proxy:port"])
def test_a_proxy_of_an_unsupported_kind_is_reported_as_such(
    home: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", setting)
    with pytest.raises(ConfigurationError, match=r"proxy setting for api\.example\.com .* NO_PROXY"):
        Client("https://api.example.com/prod", "k" * 30).whoami()


# ---------------------------------------------------------------------- clocks, and foreign errors


def test_a_wrong_clock_is_measured_by_the_date_of_an_answer(
    double: Double, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.time, "time", lambda: 1_800_000_000.0)
    client.whoami()
    assert client.clock_ahead == -0.5, "a Date has whole seconds, and is taken for half a second later"
    double.clock = timedelta(minutes=-7)
    client.whoami()
    assert client.clock_ahead == 7 * 60 - 0.5


def test_an_answer_without_a_date_says_nothing_about_clocks(double: Double, client: Client) -> None:
    for date in (b"", b"Date: sometime\r\n"):

        def undated(handler: BaseHTTPRequestHandler, date: bytes = date) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + date + b"Content-Length: 2\r\n\r\n[]")

        double.faults = [undated]
        with pytest.raises(UnexpectedAnswer):
            client.whoami()
        assert client.clock_ahead is None


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "[SSL: SOMETHING] else"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        OSError(5, "Input/output error"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        UnicodeError("label too long"),
        http.client.RemoteDisconnected("closed"),
    ],
)
def test_every_error_of_a_connection_attempt_is_a_knock_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: Exception
) -> None:
    def fail(*args: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(KnockError) as caught:
        Client("https://api.example.com/prod", "k" * 30).whoami()
    assert isinstance(caught.value, CannotReach)
    assert "k" * 30 not in str(caught.value)
