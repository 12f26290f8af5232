"""A function's process: loads it, invokes it with each event, and reports the process's CPU time after each.

    python first.py FOLDER MODULE PORT < a line of JSON for each event > a line of JSON for each figure

Changes the function's network only: AWS's host names resolve to this machine's PORT, and the certificate
authority in FIRST_CA is trusted beside those that the function chooses. Both cost every function the same.
"""

import json
import os
import resource
import socket
import ssl
import sys


def resolve_aws_to(port: int, ca: str) -> None:
    """Resolve AWS's host names to a port of this machine, and refuse all others."""

    def find(host, *_arguments, **_keywords):
        if not str(host).endswith(".amazonaws.com"):
            raise socket.gaierror(f"{host} is not to be called here")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    socket.getaddrinfo = find
    load = ssl.SSLContext.load_verify_locations

    def load_and_trust(self, *arguments, **keywords):
        load(self, *arguments, **keywords)
        load(self, cadata=ca)

    ssl.SSLContext.load_verify_locations = load_and_trust


class Context:
    """The part of Lambda's context that Powertools reads."""

    function_name = "bench"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:bench"
    aws_request_id = "00000000-0000-0000-0000-000000000000"


def main() -> None:
    folder, module, port = sys.argv[1:]
    resolve_aws_to(int(port), os.environ.pop("FIRST_CA"))
    figures, sys.stdout = sys.stdout, sys.stderr  # the function's log is no figure
    sys.path.insert(0, folder)

    def report(answer: object) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        line = {"cpu": (usage.ru_utime + usage.ru_stime) * 1000, "answer": answer}
        print(json.dumps(line), file=figures, flush=True)

    handler = __import__(module).handler
    report(None)
    for line in sys.stdin:
        report(handler(json.loads(line), Context()))


main()
