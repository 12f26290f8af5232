"""Which certificates functions accept: Amazon's own roots, and botocore's where those could be too few."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from typing import Any

import certifi
import pytest
from botocore.exceptions import SSLError

from bench.recorded import Recorded
from grants import trust
from grants.errors import StoreUnavailable
from grants.settings import BadSetting
from grants.trust import ROOTS, roots
from tests.adapters.test_wiring import wired
from tools import roots as maker

BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def certificates(path: str | Path) -> list[bytes]:
    return [ssl.PEM_cert_to_DER_cert(block) for block in BLOCK.findall(Path(path).read_text())]


def test_the_file_is_what_certifi_has_of_the_roots_that_amazon_names() -> None:
    """https://www.amazontrust.com/repository/ asks for all five in a trust store of one's own.

    Mutation: functions/roots/amazon.pem: `# Amazon Root CA 1` -> `# Amazon Root`
    """
    assert ROOTS.read_text() == maker.text(), "run python -m tools.roots"
    assert maker.FILE == ROOTS
    own = certificates(ROOTS)
    assert len(own) == len(set(own)) == 5
    assert set(own) < set(certificates(certifi.where()))


def test_they_are_amazons_roots_and_valid_until_2037() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ROOTS)
    by_name = {
        dict(pair[0] for pair in root["subject"])["commonName"]: root for root in context.get_ca_certs()
    }  # type: ignore[union-attr,misc,index]
    assert sorted(by_name) == [
        *(f"Amazon Root CA {number}" for number in (1, 2, 3, 4)),
        "Starfield Services Root Certificate Authority - G2",
    ]
    for root in by_name.values():
        assert root["subject"] == root["issuer"]
        assert int(str(root["notAfter"]).split()[3]) >= 2037


@pytest.mark.parametrize(
    ("bundle", "message"),
    [("", "has no root called Amazon Root CA 1"), (None, "is not the one Amazon lists")],
)
def test_a_certifi_without_one_of_them_writes_no_file(
    bundle: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: tools/roots.py: `.hexdigest() != key:` -> `.hexdigest() == "":`"""
    if bundle is None:
        certifi_bundle = Path(certifi.where()).read_text()
        another = BLOCK.findall(certifi_bundle)[0]
        bundle = f'# Label: "Amazon Root CA 1"\n{another}\n'
    (tmp_path / "ca.pem").write_text(bundle)
    monkeypatch.setattr(certifi, "where", lambda: str(tmp_path / "ca.pem"))
    with pytest.raises(maker.RootMissing, match=message):
        maker.text()


@pytest.mark.parametrize(
    ("environment", "partition", "own"),
    [
        ({}, "aws", True),
        ({"TRUSTED_ROOTS": "amazon"}, "aws", True),
        ({"TRUSTED_ROOTS": ""}, "aws", True),
        ({"TRUSTED_ROOTS": "botocore"}, "aws", False),
        ({}, "aws-cn", False),
        ({}, "aws-us-gov", False),
        ({}, "aws-eusc", False),
        ({}, "aws-iso-b", False),
        ({"AWS_CA_BUNDLE": "/etc/ca.pem"}, "aws", False),
        ({"AWS_CA_BUNDLE": ""}, "aws", True),
        ({"REQUESTS_CA_BUNDLE": "/etc/ca.pem"}, "aws", False),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "aws", False),
        ({"https_proxy": "http://proxy:3128"}, "aws", False),
        ({"AWS_ENDPOINT_URL": "https://aws.example"}, "aws", False),
        ({"AWS_ENDPOINT_URL_EC2": "https://ec2.example"}, "aws", False),
    ],
)
def test_botocores_roots_are_used_where_amazons_could_be_too_few(
    environment: dict[str, str], partition: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: functions/grants/trust.py: `partition != "aws"` -> `partition == "aws-cn"`"""
    assert roots(environment, partition) == (str(ROOTS) if own else None)


def test_a_client_trusts_them_and_botocores_where_the_setting_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutation: functions/grants/wiring.py: `"verify": self._verify}` -> `"verify": None}`"""

    def trusted(**environment: str) -> Any:
        client: Any = wired(monkeypatch, **environment).client("sdb")
        return client._endpoint.http_session._verify

    assert trusted() == str(ROOTS)
    assert trusted(TRUSTED_ROOTS="botocore") is True
    china = "arn:aws-cn:states:cn-north-1:123456789012:stateMachine:knock-grants"
    assert trusted(TRUSTED_ROOTS="amazon", STATE_MACHINE_ARN=china) is True
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ca.pem")
    assert trusted(AWS_CA_BUNDLE="/etc/ca.pem") == "/etc/ca.pem"


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(BadSetting, match="TRUSTED_ROOTS is 'none'; there are amazon and botocore"):
        roots({"TRUSTED_ROOTS": "none"}, "aws")


@pytest.mark.enable_socket
def test_a_certificate_of_another_authority_is_refused_and_the_log_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: functions/grants/wiring.py:
    `        client.meta.events.register("needs-retry", explain)` -> ``
    """
    aws = Recorded(tmp_path)
    here = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", aws.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_named: here)
    errors: list[dict[str, str]] = []
    monkeypatch.setattr(
        trust.logger, "error", lambda message, extra: errors.append(extra | {"message": message})
    )
    try:
        with pytest.raises(StoreUnavailable, match="SSLError") as failed:
            wired(monkeypatch).trail.get("g1")
        assert isinstance(failed.value.__cause__, SSLError)
        assert not aws.calls
        assert {error["message"] for error in errors} == {"aws_not_trusted"}
        assert "CERTIFICATE_VERIFY_FAILED" in errors[0]["detail"]
        assert "TrustedRoots=botocore" in errors[0]["do"]
        assert "AWS_CA_BUNDLE" in errors[0]["do"]
        # An authority that botocore's own setting names is trusted.
        (tmp_path / "ca.pem").write_text(aws.ca)
        trail = wired(monkeypatch, AWS_CA_BUNDLE=str(tmp_path / "ca.pem")).trail
        assert trail.get("g1") is None
        assert aws.calls == {"GetAttributes": 1}
    finally:
        aws.close()
