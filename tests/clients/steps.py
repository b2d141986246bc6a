"""Common code of the scripts that drive a VM by a Python client.

A script prints `passed STEP` after each step. tests/clients/results lists the steps that must pass.
"""

import os
import sys
import time

TIMEOUT = 60


def passed(step):
    """Reports that `step` has passed."""
    print(f"passed {step}", flush=True)


def wait_for(event, condition):
    """Waits until `condition` holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timeout: {event}")
        time.sleep(0.001)


def make_disk(path):
    """Creates a disk image of 1 MiB."""
    with open(path, "wb") as file:
        file.truncate(1 << 20)


def expect_pause(path):
    """Waits until the guest of a paused VM adds no output to the file at `path`.

    A thread of mayfly writes to a file on a disk, and may write the last lines after the response to the pause.
    """

    def is_quiet():
        length = os.path.getsize(path)
        # Far longer than the interval between two lines of the guest.
        time.sleep(0.3)
        return os.path.getsize(path) == length

    wait_for("the end of the output of a paused guest", is_quiet)


def expect_output(path):
    """Waits until the guest adds output to the file at `path`."""
    length = os.path.getsize(path)
    wait_for("output", lambda: os.path.getsize(path) > length)
