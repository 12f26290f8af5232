"""A recorded AWS: fixed answers to the calls of the cold functions, over TLS, with an authority of its own.

Its only state is the last grant that was started, whose record it shows as open. So a function's process
spends its time on its own work, and a call costs a connection, a signature and parsing, as on AWS. The
certificate chain has the form of AWS's: RSA, with a leaf and an intermediate authority.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from local.stack import REGION

GROUP, RULE = "sg-0123456789abcdef0", "sgr-0123456789abcdef0"
SIMPLEDB = "http://sdb.amazonaws.com/doc/2009-04-15/"
EC2 = "http://ec2.amazonaws.com/doc/2016-11-15/"
META = "<ResponseMetadata><RequestId>r</RequestId><BoxUsage>0.0000219907</BoxUsage></ResponseMetadata>"


class Recorded:
    """The server. `ca` is the authority's certificate; `items` are the answers of GetAttributes, by name."""

    def __init__(self, folder: Path) -> None:
        """Create an authority and the server's certificate in a folder, and listen."""
        self.items: dict[str, dict[str, str]] = {}
        self.calls: Counter[str] = Counter()
        self.handshakes = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.ca, chain = _certificates(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        recorded = self

        class Handler(_Handler):
            aws = recorded

            def setup(self) -> None:
                self.request = context.wrap_socket(self.request, server_side=True)
                with recorded._lock:
                    recorded.handshakes += 1
                    recorded._open.add(self.request)
                super().setup()

            def finish(self) -> None:
                with recorded._lock:
                    recorded._open.discard(self.request)
                with contextlib.suppress(OSError):
                    super().finish()

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def hang_up(self) -> None:
        """Close every connection, as AWS does with idle ones."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, service: str, target: str, body: bytes) -> tuple[str, str]:
        """Answer a call: the content's type and the content. Raises KeyError for an unknown operation."""
        if service == "apigateway":
            return self._count_and_type("GetTags", "json", json.dumps({"tags": TAGS}))
        if service in ("tagging", "states"):
            operation = target.rpartition(".")[2]
            if operation == "StartExecution":
                self._open_at_once(json.loads(body))
            return self._count_and_type(operation, "x-amz-json-1.1", json.dumps(JSON[operation]))
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        operation = form["Action"]
        if service == "sdb":
            return self._count_and_type(operation, "xml", self._simpledb(operation, form))
        return self._count_and_type(operation, "xml", _ec2(operation, form))

    def _count_and_type(self, operation: str, kind: str, text: str) -> tuple[str, str]:
        with self._lock:
            self.calls[operation] += 1
        return f"text/{kind}" if kind == "xml" else f"application/{kind}", text

    def _open_at_once(self, request: dict[str, Any]) -> None:
        """Record a grant that has just been started as open."""
        grant = json.loads(request["input"])
        self.items[request["name"]] = {
            "kind": "grant",
            "state": "live",
            "closed_at": "-",
            "authorized_at": grant["requested_at"],
            "input_00": request["input"],
        }

    def _simpledb(self, operation: str, form: dict[str, str]) -> str:
        result = ""
        if operation == "GetAttributes":
            item = self.items.get(form["ItemName"], {})
            result = "".join(_attribute(name, text) for name, text in item.items())
            result = f"<GetAttributesResult>{result}</GetAttributesResult>"
        elif operation == "Select":
            result = f"<Item><Name>Domain</Name>{_attribute('Count', '1')}</Item>"
            result = f"<SelectResult>{result}</SelectResult>"
        elif operation != "PutAttributes":
            raise KeyError(operation)
        return f'<{operation}Response xmlns="{SIMPLEDB}">{result}{META}</{operation}Response>'


def _attribute(name: str, text: str) -> str:
    return f"<Attribute><Name>{name}</Name><Value>{escape(text)}</Value></Attribute>"


TAGS = {"knock:name": "alice", "knock:targets": "bastion", "knock:max-duration": "24h"}
GROUP_TAGS = {
    "knock:stack": "knock",
    "knock:target": "bastion",
    "knock:ports": "22/tcp",
}
JSON: dict[str, Any] = {
    "GetResources": {
        "PaginationToken": "",
        "ResourceTagMappingList": [
            {
                "ResourceARN": f"arn:aws:ec2:{REGION}:123456789012:security-group/{GROUP}",
                "Tags": [{"Key": key, "Value": text} for key, text in GROUP_TAGS.items()],
            }
        ],
    },
    "StartExecution": {
        "executionArn": f"arn:aws:states:{REGION}:123456789012:execution:knock-grants:a",
        "startDate": 1795000000.0,
    },
}


def _ec2(operation: str, form: dict[str, str]) -> str:
    if operation == "DescribeSecurityGroups":
        tags = "".join(f"<item><key>{k}</key><value>{v}</value></item>" for k, v in GROUP_TAGS.items())
        result = (
            f"<securityGroupInfo><item><groupId>{GROUP}</groupId><ipPermissions/>"
            f"<tagSet>{tags}</tagSet></item></securityGroupInfo>"
        )
    elif operation == "AuthorizeSecurityGroupIngress":
        cidr = form["IpPermissions.1.IpRanges.1.CidrIp"]
        result = (
            f"<return>true</return><securityGroupRuleSet><item><securityGroupRuleId>{RULE}</securityGroupRuleId>"
            f"<groupId>{GROUP}</groupId><isEgress>false</isEgress><ipProtocol>tcp</ipProtocol>"
            f"<fromPort>22</fromPort><toPort>22</toPort><cidrIpv4>{cidr}</cidrIpv4></item></securityGroupRuleSet>"
        )
    elif operation == "RevokeSecurityGroupIngress":
        result = (
            f"<return>true</return><revokedSecurityGroupRuleSet><item>"
            f"<securityGroupRuleId>{RULE}</securityGroupRuleId></item></revokedSecurityGroupRuleSet>"
        )
    else:
        raise KeyError(operation)
    return f'<{operation}Response xmlns="{EC2}"><requestId>r</requestId>{result}</{operation}Response>'


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has disconnected: its process has ended."""


class _Handler(BaseHTTPRequestHandler):
    aws: Recorded
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one record

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service = self.headers["Host"].partition(".")[0]
        try:
            kind, text = self.aws.answer(service, self.headers.get("X-Amz-Target", ""), body)
        except KeyError as unknown:
            self.send_error(501, f"the recorded AWS has no answer to {service} {unknown}")
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = _answer  # noqa: N815  # http.server's names

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _certificates(folder: Path) -> tuple[str, Path]:
    """Create a root, an authority below it and a leaf for AWS's names. Returns the root's PEM, and a file."""
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        for name in ("bench root", "bench authority", f"{REGION}.amazonaws.com")
    ]
    certificates = []
    for at in range(3):
        above = max(0, at - 1)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[at])
            .issuer_name(names[above])
            .public_key(keys[at].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=at < 2, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[at].public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[above].public_key()), critical=False
            )
        )
        if at == 2:
            alternatives = [x509.DNSName(f"*.{REGION}.amazonaws.com")]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificates.append(builder.sign(keys[above], hashes.SHA256()))
    root, authority, leaf = (
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates
    )
    key = keys[2].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = folder / "chain.pem"
    chain.write_bytes(key + leaf + authority)
    return root.decode(), chain
