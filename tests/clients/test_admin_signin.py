"""Signing in to AWS: a profile that gives no credentials is an error of one line, and exit code 3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from knock_admin import cli
from knock_admin.aws import Aws
from tests.clients.admin_support import ACCOUNT, REGION, World, make_world
from tests.conftest import ROOT

world = pytest.fixture(make_world)

ROLE = f"arn:aws:iam::{ACCOUNT}:role/operator"
MFA = f"mfa_serial = arn:aws:iam::{ACCOUNT}:mfa/me"
KEYS = "[profile keys]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
SSO = f"sso_region = eu-west-1\nsso_account_id = {ACCOUNT}\nsso_role_name = operator"
ASSUMED = f"role_arn = {ROLE}\nsource_profile = keys\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the path of an AWS configuration, the only source of credentials besides the environment."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "config"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("credential_process = /nonexistent/program", "there is no /nonexistent/program"),
        (
            "credential_process = /bin/echo hello",
            "of the profile p names gave no credentials (JSONDecodeError)",
        ),
        ("credential_process = /bin/echo []", "gave no credentials (AttributeError)"),
        ("credential_process = /bin/sh -c 'x", "gave no credentials (ValueError)"),
        ("credential_process = /bin/false", "Error when retrieving credentials from custom-process. Sign in"),
        (
            f"role_arn = {ROLE}\nweb_identity_token_file = /nonexistent/token",
            "there is no /nonexistent/token",
        ),
        (f"sso_start_url = https://x.awsapps.com/start\n{SSO}", "Sign in with `aws sso login --profile p`"),
        (f"role_arn = {ROLE}\nsource_profile = nope", 'The source_profile "nope" referenced in'),
    ],
)
def test_a_sign_in_that_fails_is_one_line_and_exit_code_3(
    config: Path, capsys: pytest.CaptureFixture[str], profile: str, message: str
) -> None:
    """Mutation: clients/knock_admin/aws.py: `            self._sign_in()` -> `            pass`"""
    config.write_text(f"[profile p]\n{profile}\n")
    code = cli.main(["target", "ls", "--region", REGION, "--profile", "p"])
    output = capsys.readouterr()
    assert (code, output.out, output.err.count("\n")) == (3, "", 1), output.err
    assert output.err.startswith("knock-admin: No usable AWS credentials: ")
    assert message in output.err


def test_the_output_of_a_program_for_credentials_is_not_shown(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('[profile p]\ncredential_process = /bin/echo {"SecretAccessKey": "hush-hush"\n')
    assert cli.main(["target", "ls", "--region", REGION, "--profile", "p"]) == 3
    assert "hush" not in capsys.readouterr().err


def test_a_role_that_needs_an_mfa_code_without_a_terminal_is_an_error(config: Path) -> None:
    """The code is not read from standard input, which may be data."""
    config.write_text(f"[profile p]\n{ASSUMED}{MFA}\n{KEYS}")
    code = "import sys; from knock_admin.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "target", "ls", "--region", REGION, "--profile", "p"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "clients")},
        input="123456\n",
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # and so without a terminal
    )
    assert (result.returncode, result.stderr.count("\n")) == (3, 1), result.stderr
    assert "the role of the profile p asks for an MFA code, and there is no terminal" in result.stderr


def test_a_dry_run_assumes_the_profiles_role(world: World, config: Path) -> None:
    """Mutation: clients/knock_admin/aws.py: `or service.service_name in SIGNING_IN` -> ``"""
    config.write_text(f"[profile p]\n{ASSUMED}{KEYS}")
    result = world.ok("target", "add", "bastion", "--ports", "22/tcp", "--dry-run", "--profile", "p")
    assert "ec2:CreateSecurityGroup" in result.out
    assert "AssumeRole" not in result.out


def test_dual_stack_endpoints_are_used_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: clients/knock_admin/aws.py: `dualstack_endpoint=False` -> `dualstack_endpoint=None`"""
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    aws = Aws(region=REGION)
    addresses = {name: aws.client(name).meta.endpoint_url for name in ("apigateway", "ec2")}
    addresses["sdb"] = aws.client("sdb", "eu-west-1").meta.endpoint_url
    assert addresses == {
        "apigateway": f"https://apigateway.{REGION}.amazonaws.com",
        "ec2": f"https://ec2.{REGION}.api.aws",
        "sdb": "https://sdb.eu-west-1.amazonaws.com",
    }
    assert aws.read_domain() == "amazonaws.com", "which the API's address is made of"
