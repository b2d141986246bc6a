"""Runs schemathesis, unmodified from PyPI, with the specification that mayfly serves.

    explore.py SOCKET [SECONDS]

schemathesis does not support Unix sockets: the script forwards a loopback port to SOCKET. Each run generates the same
examples first, then random requests until SECONDS (45) have passed. Prints `passed METHOD PATH` or `failed METHOD PATH` for each
operation. Exits with the status of schemathesis, or with 1 after a timeout.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from xml.etree import ElementTree

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"
# Limit of one run in seconds.
TIMEOUT = 400
# Least time of the random requests in seconds.
MIN_FUZZING = 5
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


def run(url, phases, options, timeout):
    """Runs schemathesis for at most `timeout` seconds. Returns its exit status, and for each tested operation true if it passed."""
    report = os.path.join(tempfile.mkdtemp(dir="."), "report.xml")
    command = [
        SCHEMATHESIS, "run", f"{url}/openapi.yaml", "--url", url, "--checks", CHECKS, "--phases", phases,
        "--max-examples", "25", "--seed", "4", "--generation-deterministic",
        "--request-timeout", "60", "--no-shrink", "--no-color", "--continue-on-failure",
        "--report-junit-path", report, *options,
    ]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    try:
        status = subprocess.run(command, env=environment, timeout=timeout).returncode
    except subprocess.TimeoutExpired:
        sys.exit("schemathesis did not end")
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        # An operation is skipped after the time limit.
        if "skipped" not in tags:
            results[case.get("name")] = not tags & {"failure", "error"}
    return status, results


def main(path, seconds="45"):
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=forward, args=(listener, path), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    deadline = time.monotonic() + int(seconds)
    # Without a limit: each operation must be tested, also on a busy machine.
    status, results = run(url, "examples,coverage", [], TIMEOUT)
    rest = max(MIN_FUZZING, int(deadline - time.monotonic()))
    fuzzing_status, fuzzed = run(url, "fuzzing", ["--max-time", str(rest)], TIMEOUT)
    for name, passed in fuzzed.items():
        results[name] = passed and results.get(name, True)
    for name, passed in results.items():
        print("passed" if passed else "failed", name)
    sys.exit(status or fuzzing_status)


main(*sys.argv[1:])
