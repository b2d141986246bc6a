"""Boots, pauses, saves, restores and stops a VM by pyrecracker, unmodified from PyPI.

    pyrecracker_client.py MAYFLY KERNEL DIRECTORY

KERNEL prints forever. The script does not use the class VMManager, which creates a tap and rules of iptables by sudo, but its
part FirecrackerClient, which sends all requests.
"""

import atexit
import os
import subprocess
import sys

from pyrecracker.client import FirecrackerClient
from pyrecracker.client_types import (
    VM,
    ActionType,
    BootSource,
    CacheType,
    Drive,
    HugePages,
    InstanceActionInfo,
    IOEngine,
    MachineConfiguration,
    NetworkInterface,
    SnapshotCreateParams,
    SnapshotLoadParams,
    SnapshotType,
    VMState,
)
from requests.exceptions import HTTPError

from steps import expect_output, expect_pause, make_disk, passed, wait_for


class Process:
    """mayfly under the name `firecracker`, with its socket, its output and a client."""

    def __init__(self, mayfly, directory, name):
        binary = f"{directory}/firecracker"
        if not os.path.exists(binary):
            os.symlink(mayfly, binary)
        self.output = f"{directory}/{name}.out"
        socket = f"{directory}/{name}.sock"
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen([binary, "--api-sock", socket], stdin=subprocess.DEVNULL, stdout=file)
        atexit.register(self.kill)
        wait_for("socket", lambda: os.path.exists(socket))
        self.client = FirecrackerClient(socket)

    def kill(self):
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def save(mayfly, kernel, directory):
    """Boots a VM and creates a full snapshot and a diff of it."""
    process = Process(mayfly, directory, "first")
    client, output = process.client, process.output
    disk = f"{directory}/disk"
    make_disk(disk)
    client.put_machine_config(
        MachineConfiguration(
            vcpu_count=1, mem_size_mib=64, smt=False, track_dirty_pages=True, huge_pages=HugePages.NONE
        )
    )
    passed("put_machine_config")
    client.put_boot_source(BootSource(kernel_image_path=kernel, boot_args="console=ttyS0 reboot=k panic=1 pci=off"))
    passed("put_boot_source")
    client.put_drives(
        Drive(
            drive_id="rootfs", is_root_device=True, cache_type=CacheType.UNSAFE, is_read_only=False,
            path_on_host=disk, io_engine=IOEngine.SYNC,
        )
    )
    passed("put_drives")
    try:
        client.put_network_interfaces(NetworkInterface(host_dev_name="missing0", iface_id="eth0"))
        sys.exit("an interface without a tap was accepted")
    except HTTPError as error:
        assert error.response.status_code == 400
        assert "missing0" in error.response.json()["fault_message"]
    passed("put_network_interfaces without a tap")
    client.put_actions(InstanceActionInfo(action_type=ActionType.INSTANCE_START))
    expect_output(output)
    passed("put_actions InstanceStart")
    client.put_actions(InstanceActionInfo(action_type=ActionType.FLUSH_METRICS))
    passed("put_actions FlushMetrics")
    client.put_actions(InstanceActionInfo(action_type=ActionType.SEND_CTRL_ALT_DEL))
    passed("put_actions SendCtrlAltDel")
    client.patch_vm(VM(state=VMState.PAUSED))
    expect_pause(output)
    passed("patch_vm Paused")
    for kind in (SnapshotType.FULL, SnapshotType.DIFF):
        client.put_snapshot_create(
            SnapshotCreateParams(
                snapshot_path=f"{directory}/{kind}.state", mem_file_path=f"{directory}/{kind}.memory",
                snapshot_type=kind,
            )
        )
        passed(f"put_snapshot_create {kind}")
    client.patch_vm(VM(state=VMState.RESUMED))
    expect_output(output)
    passed("patch_vm Resumed")
    process.kill()


def restore(mayfly, directory):
    """Loads the full snapshot."""
    process = Process(mayfly, directory, "second")
    process.client.put_snapshot_load(
        SnapshotLoadParams(
            snapshot_path=f"{directory}/Full.state", mem_file_path=f"{directory}/Full.memory",
            track_dirty_pages=True, resume_vm=True,
        )
    )
    expect_output(process.output)
    passed("put_snapshot_load")
    process.kill()


def main(mayfly, kernel, directory):
    save(mayfly, kernel, directory)
    restore(mayfly, directory)


main(*sys.argv[1:])
