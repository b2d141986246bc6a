"""schemathesis, as it comes from PyPI, against the specification that mayfly itself serves.

    explore.py SOCKET [SECONDS]

It knows no unix sockets, so that a loopback port is forwarded to SOCKET. The examples are the same in each run, as many as take
less than a minute. Exits with schemathesis's status, or 1 when something hung.
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
    """Copies until one side ends, and ends the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def forward(listener, path):
    """Connects all who come to the socket at `path`."""
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
