"""Boots, pauses, resumes and stops a VM by firecracker-python, unmodified from PyPI.

    drive.py MAYFLY KERNEL DIRECTORY

KERNEL prints forever. The script does not use the class MicroVM, which first requests the public address of the machine
from the internet, but its parts: ProcessManager starts and stops the process, Api configures the VM, VMMManager pauses and
resumes it.
"""

import os
import signal
import sys
import time

from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

VM = "mayfly01"
TIMEOUT = 60


def wait_for(event, condition):
    """Waits until `condition` holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timeout: {event}")
        time.sleep(0.001)


def main(mayfly, kernel, directory):
    # Reaps children automatically: the client waits until the PID of the stopped process is free.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    home = os.path.join(directory, VM)
    os.makedirs(home)
    binary = os.path.join(directory, "firecracker")
    os.symlink(mayfly, binary)
    disk = os.path.join(home, "rootfs.ext4")
    with open(disk, "wb") as file:
        file.truncate(1 << 20)

    processes, vmms = ProcessManager(), VMMManager()
    for part in (processes, vmms, vmms._process):
        part._config.binary_path = binary
        part._config.data_path = directory

    socket = f"{home}/firecracker.socket"
    pid = processes.start(VM, ["--api-sock", socket, "--id", VM, "--log-path", f"{home}/{VM}.log"])
    assert processes.is_running(VM)
    assert processes.get_pid(VM)[0] == pid
    assert pid in processes.get_pids()

    api = vmms.get_api(VM)
    state = lambda: api.describe.get().json()["state"]
    assert state() == "Not started"
    api.boot.put(kernel_image_path=kernel, boot_args="console=ttyS0 reboot=k pci=off panic=1")
    api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=True, is_read_only=False)
    api.machine_config.put(vcpu_count=1, mem_size_mib=128)
    assert api.machine_config.get().json()["mem_size_mib"] == 128
    api.actions.put(action_type="InstanceStart")
    assert state() == "Running"
    assert api.vm_config.get().json()["drives"][0]["drive_id"] == "rootfs"

    output = f"{home}/firecracker.log"
    length = lambda: os.path.getsize(output)
    wait_for("output", lambda: length() > 0)
    vmms.update_vmm_state(VM, "Paused")
    assert state() == "Paused"
    paused = length()
    # Far longer than the interval between two lines of the guest.
    time.sleep(0.3)
    assert length() == paused, "the guest printed while it was paused"
    vmms.update_vmm_state(VM, "Resumed")
    assert state() == "Running"
    wait_for("output after the pause", lambda: length() > paused)

    api.close()
    assert processes.stop(VM)
    assert not os.path.exists(f"/proc/{pid}"), "the process still exists"
    assert not os.path.exists(socket), "the socket still exists"
    print("booted, paused, resumed and stopped")


main(*sys.argv[1:])
