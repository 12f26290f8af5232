"""Run as a function's process: start it, invoke it twice, and say after each what CPU the process has used.

    python first.py FOLDER MODULE PORT < lines of JSON, one an event > lines of JSON, one a figure

Stands between the function and the network alone: AWS's names lead to this machine's PORT, and the
certificate authority in FIRST_CA is trusted beside those that the function chooses. Both cost every function
the same.
"""

import json
import os
import resource
import socket
import ssl
import sys


def lead_home(port: int, ca: str) -> None:
    """Have AWS's names lead to a port of this machine, and no other name anywhere."""

    def find(host, *_arguments, **_named):
        if not str(host).endswith(".amazonaws.com"):
            raise socket.gaierror(f"{host} is not to be called here")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    socket.getaddrinfo = find
    load = ssl.SSLContext.load_verify_locations

    def load_and_trust(self, *arguments, **named):
        load(self, *arguments, **named)
        load(self, cadata=ca)

    ssl.SSLContext.load_verify_locations = load_and_trust


class Context:
    """What Powertools reads of Lambda's context."""

    function_name = "bench"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:bench"
    aws_request_id = "00000000-0000-0000-0000-000000000000"


def main() -> None:
    folder, module, port = sys.argv[1:]
    lead_home(int(port), os.environ.pop("FIRST_CA"))
    said, sys.stdout = sys.stdout, sys.stderr  # what the function logs is no figure
    sys.path.insert(0, folder)

    def say(answer: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        line = {"cpu": (used.ru_utime + used.ru_stime) * 1000, "answer": answer}
        print(json.dumps(line), file=said, flush=True)

    handler = __import__(module).handler
    say(None)
    for line in sys.stdin:
        say(handler(json.loads(line), Context()))


main()
