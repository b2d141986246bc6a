"""Boots, pauses, resumes and stops a VM by firecracker-python, unmodified from PyPI.

    drive.py MAYFLY KERNEL DIRECTORY

KERNEL prints forever. The script does not use the class MicroVM, which first requests the public address of the machine
from the internet, but its parts: ProcessManager starts and stops the process, Api configures the VM, VMMManager pauses and
resumes it.
"""

import atexit
import os
import signal
import sys

from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

from steps import expect_output, expect_pause, make_disk, passed, wait_for

VM = "mayfly01"


def main(mayfly, kernel, directory):
    # Reaps children automatically: the client waits until the PID of the stopped process is free.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    home = os.path.join(directory, VM)
    os.makedirs(home)
    binary = os.path.join(directory, "firecracker")
    os.symlink(mayfly, binary)
    disk = os.path.join(home, "rootfs.ext4")
    make_disk(disk)

    processes, vmms = ProcessManager(), VMMManager()
    for part in (processes, vmms, vmms._process):
        part._config.binary_path = binary
        part._config.data_path = directory

    socket = f"{home}/firecracker.socket"
    pid = processes.start(VM, ["--api-sock", socket, "--id", VM, "--log-path", f"{home}/{VM}.log"])
    # A failed script leaves no process.
    atexit.register(os.kill, pid, signal.SIGKILL)
    passed("ProcessManager.start")
    assert processes.is_running(VM)
    passed("ProcessManager.is_running")
    assert processes.get_pid(VM)[0] == pid
    passed("ProcessManager.get_pid")
    assert pid in processes.get_pids()
    passed("ProcessManager.get_pids")

    # The client does not wait for a slow start.
    wait_for("socket", lambda: os.path.exists(socket))
    api = vmms.get_api(VM)
    passed("VMMManager.get_api")
    state = lambda: api.describe.get().json()["state"]
    assert state() == "Not started"
    passed("Api.describe.get")
    api.boot.put(kernel_image_path=kernel, boot_args="console=ttyS0 reboot=k pci=off panic=1")
    passed("Api.boot.put")
    api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=True, is_read_only=False)
    passed("Api.drive.put")
    api.machine_config.put(vcpu_count=1, mem_size_mib=128)
    passed("Api.machine_config.put")
    assert api.machine_config.get().json()["mem_size_mib"] == 128
    passed("Api.machine_config.get")
    api.actions.put(action_type="InstanceStart")
    assert state() == "Running"
    passed("Api.actions.put")
    assert api.vm_config.get().json()["drives"][0]["drive_id"] == "rootfs"
    passed("Api.vm_config.get")

    output = f"{home}/firecracker.log"
    expect_output(output)
    vmms.update_vmm_state(VM, "Paused")
    assert state() == "Paused"
    expect_pause(output)
    passed("VMMManager.update_vmm_state Paused")
    vmms.update_vmm_state(VM, "Resumed")
    assert state() == "Running"
    expect_output(output)
    passed("VMMManager.update_vmm_state Resumed")

    api.close()
    assert processes.stop(VM)
    atexit.unregister(os.kill)
    assert not os.path.exists(f"/proc/{pid}"), "the process still exists"
    assert not os.path.exists(socket), "the socket still exists"
    passed("ProcessManager.stop")


main(*sys.argv[1:])
