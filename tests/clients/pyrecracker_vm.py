"""Boots, pauses, saves, stops and restores a VM by pyrecracker, unmodified from PyPI.

    pyrecracker_vm.py MAYFLY KERNEL DIRECTORY

KERNEL prints forever. The tap `tap0` exists. pyrecracker runs `sudo firecracker`: the script puts a link to MAYFLY, and a `sudo`
that executes its arguments, into PATH.
"""

import os
import sys
import time

import psutil

TIMEOUT = 120


def wait_for(event, condition):
    """Waits until `condition` holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timeout: {event}")
        time.sleep(0.001)


def kill_all():
    """Kills the processes that pyrecracker has started, and waits for their end."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
        child.wait(TIMEOUT)


def main(mayfly, kernel, directory):
    os.symlink(mayfly, f"{directory}/firecracker")
    with open(f"{directory}/sudo", "w") as file:
        file.write('#!/bin/sh\nexec "$@"\n')
    os.chmod(f"{directory}/sudo", 0o755)
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"

    from pyrecracker.vm import VMManager

    disk = f"{directory}/disk"
    with open(disk, "wb") as file:
        file.truncate(1 << 20)

    def start(name):
        socket = f"{directory}/{name}.sock"
        vm = VMManager(socket, kernel, f"{directory}/{name}.log")
        wait_for("socket", lambda: os.path.exists(socket))
        return vm, lambda: os.path.getsize(f"{directory}/{name}.log")

    vm, length = start("first")
    vm.path_on_host = disk
    vm.is_root_device = True
    vm.mem_size_mib = 64
    vm.track_dirty_pages = True
    vm.configure()
    vm.start()
    wait_for("output", lambda: length() > 0)
    vm.pause()
    vm.create_snapshot(f"{directory}/state", f"{directory}/memory")
    paused = length()
    vm.resume()
    wait_for("output after the pause", lambda: length() > paused)
    kill_all()

    clone, length = start("second")
    clone.load_snapshot(f"{directory}/state", f"{directory}/memory", resume_vm=True)
    wait_for("output after the load", lambda: length() > 0)
    clone.pause()
    clone.resume()
    kill_all()
    print("booted, saved and restored")


main(*sys.argv[1:])
