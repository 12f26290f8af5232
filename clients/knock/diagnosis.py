"""Explains why a connection failed: the meaning of the system's error, and what to check.

It is imported only after a failure, since importing it takes time.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import TYPE_CHECKING

from .errors import CannotReach

if TYPE_CHECKING:
    from .proxies import Proxy


def why_not_connected(
    error: Exception, host: str, port: int, proxy: Proxy | None, family: int | None = None
) -> CannotReach:
    """Make the error that explains an exception of a connection attempt."""
    peer = f"the proxy {proxy.host}:{proxy.port}" if proxy else f"{host}:{port}"
    if isinstance(error, ssl.SSLError):
        return _about_tls(error, host, port)
    if isinstance(error, (socket.gaierror, ValueError)):  # UnicodeError: the name is malformed
        return _about_name(error, proxy.host if proxy else host, family, "proxy" if proxy else "API")
    text = str(error)
    if text.startswith("Tunnel connection failed"):
        status = text.partition(": ")[2]
        if status.startswith("407"):
            return CannotReach(
                f"{peer} wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@{peer.split()[-1]}"
            )
        return CannotReach(f"{peer} will not connect to {host}:{port}: {status}")
    if isinstance(error, TimeoutError):
        return CannotReach(f"{peer} does not answer: connecting timed out", transient=True)
    if isinstance(error, ConnectionError):
        return CannotReach(f"{peer} does not take the connection ({words(error)})", transient=True)
    return CannotReach(f"{peer} cannot be reached ({words(error)})", transient=True)


def _about_name(error: Exception, name: str, family: int | None, role: str) -> CannotReach:
    if family and _is_known(name):
        return CannotReach(f"{name} has no IPv{family} address: try without -{family}")
    if getattr(error, "errno", None) == socket.EAI_AGAIN:
        return CannotReach(f"no name server answers for {name}: is this machine offline?")
    return CannotReach(
        f"the {role}'s name {name} is not known to DNS: is it spelt right? Behind a VPN, is that up?"
    )


def _about_tls(error: ssl.SSLError, host: str, port: int) -> CannotReach:
    if isinstance(error, ssl.SSLCertVerificationError):
        return CannotReach(_about_certificate(error, host))
    reason = getattr(error, "reason", None)  # some errors of the module lack it
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return CannotReach(f"{host}:{port} does not speak TLS: is the URL right, with its port?")
    return CannotReach(f"TLS with {host} failed ({reason or words(error)})", transient=True)


# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62
_UNKNOWN_ISSUER = (18, 19, 20, 21)
# The codes of strict checks only, from "invalid CA" to "extensions require version 3":
# https://github.com/openssl/openssl/blob/openssl-3.0/include/openssl/x509_vfy.h.in
_STRICT = range(79, 94)


def _about_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if error.verify_code == _NOT_YET_VALID:
        return (
            f"the certificate of {host} is not valid yet, and this machine's clock says {now}: "
            "if that is wrong, set the clock"
        )
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {host} is no longer valid, and this machine's clock says {now}: "
            "if that is wrong, set the clock; if it is right, tell an operator"
        )
    if error.verify_code == _WRONG_NAME:
        return f"the certificate is not for {host}: the URL is wrong, or something on the way answers for it"
    if error.verify_code in _UNKNOWN_ISSUER:
        return (
            f"the certificate of {host} is signed by nobody this machine trusts ({error.verify_message}). "
            + (
                _about_settings()
                or "Behind a company's proxy that reads TLS, point SSL_CERT_FILE at its certificates"
            )
        )
    if error.verify_code in _STRICT:
        return (
            f"the certificate of {host}, or of who signed it, lacks what Python 3.13 and later insist on "
            f"({error.verify_message}). If that is your company's own authority, set KNOCK_TLS_LENIENT=1: "
            "this one check is left out, all others stay. It is mended by a new certificate of the authority"
        )
    return f"the certificate of {host} does not hold ({error.verify_message})"


def _about_settings() -> str:
    """Describe a fault of SSL_CERT_FILE or SSL_CERT_DIR, which OpenSSL ignores; empty if there is none."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file is not None:
        try:
            ssl.create_default_context(cafile=file)
        except (OSError, ValueError) as error:  # SSLError, a kind of OSError: the file has no certificate
            why = "holds no certificate" if isinstance(error, ssl.SSLError) else words(error)
            return f"SSL_CERT_FILE names {file!r}, which cannot be used ({why}): correct it, or unset it"
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112 — any text may be in the environment
        return f"SSL_CERT_DIR names {folder!r}, which is no folder: correct it, or unset it"
    return ""


def _is_known(name: str) -> bool:
    """Say whether a name has an address of any family."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, ValueError):
        return False


def words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
