"""Runs schemathesis, unmodified from PyPI, with the specification that mayfly serves.

    explore.py SOCKET [SECONDS]

schemathesis does not support Unix sockets: the script forwards a loopback port to SOCKET. Each run generates the same
examples, within a minute. Exits with the status of schemathesis, or with 1 after a timeout.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"
SCHEMATHESIS = os.path.join(os.path.dirname(sys.executable), "st")


def copy(source, target):
    """Copies data until the end of one side, then shuts down the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def forward(listener, path):
    """Forwards all connections of `listener` to the socket at `path`."""
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(path)
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def main(path, seconds="45"):
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=forward, args=(listener, path), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    command = [
        SCHEMATHESIS, "run", f"{url}/openapi.yaml", "--url", url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
        "--max-examples", "25", "--seed", "4", "--generation-deterministic",
        "--request-timeout", "10", "--max-time", seconds, "--no-shrink", "--no-color", "--continue-on-failure",
    ]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    try:
        sys.exit(subprocess.run(command, env=environment, timeout=2 * int(seconds)).returncode)
    except subprocess.TimeoutExpired:
        sys.exit("schemathesis did not end")


main(*sys.argv[1:])
