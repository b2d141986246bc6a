//! Help texts.

/// The program, which mayfly executes.
pub const TOOLS: &str = "\
mayfly-tools - the commands of mayfly that start no VM

usage: mayfly core DIR|--api-sock SOCKET FILE
       mayfly ctl [--api-sock PATH] [--json] [--timeout SECONDS] COMMAND
       mayfly doctor [--json]

mayfly run and mayfly inspect execute it for OCI images, see mayfly help run.
";

/// `mayfly core`
pub const CORE: &str = "\
mayfly core - make an ELF core of a VM, for gdb

usage: mayfly core DIR FILE
       mayfly core --api-sock SOCKET FILE

Creates FILE, which must not exist. It has the registers of each vCPU as a thread, and guest memory: at its virtual
addresses by the page tables of the guest, and all of it at its physical addresses plus 0x8000000000000000 (x86_64) or
0x10000000000000 (aarch64). FILE is as long as guest memory, with holes for pages of zeros. gdb IMAGE FILE shows the
backtrace of each thread.

source:
      DIR               the snapshot in this directory, such as that of --core-on-crash. It must be a full one, and of
                        the architecture of this host
      --api-sock SOCKET the VM with this API socket, which is paused meanwhile. Its mayfly writes a
                        temporary snapshot beside FILE

exit status:
  0     success
  1     the core cannot be made; the message states the cause
  2     usage error

Try:   mayfly run unikernel.elf --core-on-crash /var/crashes
       mayfly core /var/crashes unikernel.core
       gdb -ex backtrace unikernel.elf unikernel.core
";

/// `mayfly doctor`
pub const DOCTOR: &str = "\
mayfly doctor - check this host

usage: mayfly doctor [--json]

Checks all that mayfly uses of this host: KVM, VM, memory, the rights of this user, tun, io_uring, userfaultfd,
Landlock, seccomp, cgroups, huge pages, passt. Each line has a state:
  ok        mayfly can use it
  limited   a part of it is missing; the next line has the remedy
  missing   it is missing; the next line has the remedy
Only kvm and vm are necessary for a guest. Without one of the others, options or guarantees are missing. The checks
change nothing: they create a VM without a guest, and end it.

options:
      --json            print an object: can_run, version, architecture, kernel, and checks with name, state, detail and
                        remedy (null if there is none)

exit status:
  0     mayfly can run a guest
  1     mayfly cannot run a guest
  2     usage error

Try:   mayfly doctor
       mayfly doctor --json | jq '.checks[] | select(.state != \"ok\")'
";

/// `mayfly ctl`
pub const CTL: &str = "\
mayfly ctl - control a running mayfly or Firecracker over its API socket

usage: mayfly ctl [--api-sock PATH] [--json] [--timeout SECONDS] COMMAND

Show:
  status [--registers]  print the instance state and the size of the VM; the state of each vCPU, running or halted; the
                        progress of each driver; the last accesses to ports and addresses of no device. --registers
                        also prints instruction pointer and interrupt flag, for which it interrupts each vCPU for some
                        microseconds, and detects a guest that has halted for good
  config                print the configuration with drives, interfaces and rate limits
  metrics               print GET /metrics unchanged, in the text format of Prometheus: phases of the start, exits of
                        vCPUs, requests of drives, packets of interfaces

Act:
  start                 start a configured VM
  pause                 pause the guest
  resume                resume a paused guest
  stop                  send Ctrl-Alt-Del to the guest (x86_64 only). Linux reboots, which ends mayfly; most unikernels
                        ignore the keys. To end any VM, end its process: kill PID
  suspend               suspend the VM: create a snapshot, and end mayfly with status 123
  cancel-suspend        cancel a suspend in progress; the guest resumes
  ready                 announce that the guest is ready: the cool-down of --idle-after begins
  flush-metrics         write a line to the metrics file, if one is configured
  console [PATH]        attach stdin and stdout to the serial console of a VM with --serial unix:PATH or pty, or to
                        that at PATH, without an API socket. Prints the last 64 KiB of output first. Ctrl-A d detaches.
                        The input of one client at a time goes to the guest, that of the first one that sends
  gdb                   connect gdb with the guest, which stops. In gdb: target remote | mayfly ctl gdb --api-sock PATH

Change devices of a running guest:
  drive ID [--path PATH] [--bandwidth LIMIT] [--ops LIMIT]
                        replace the file by that at PATH, as the server sees it, or set rate limits. Without an
                        option, report the present size of the file to the guest
  net ID [--rx-bandwidth LIMIT] [--rx-ops LIMIT] [--tx-bandwidth LIMIT] [--tx-ops LIMIT]
                        set rate limits for frames to the guest (rx) and from the guest (tx)
  LIMIT is AMOUNT/MILLISECONDS[/BURST]: AMOUNT per time, and BURST once in addition; or off. Bandwidth counts bytes,
  with an optional suffix K, M, G or T; ops count requests or packets. Limits that are not given stay unchanged.

Control the instances of a supervisor (mayfly standby):
  instances             list them, with state and reason
  instance ID           print an instance with its configuration
  wake ID               wake an instance, and wait until its guest runs
  suspend ID            suspend an instance, and wait until its process has ended
  delete ID             delete a suspended or failed instance with its snapshots in the state directory

Send any other request:
  request METHOD PATH [BODY|-]
                        send a request with a JSON body; - reads BODY from stdin

options:
      --api-sock PATH   connect to this socket, the one of mayfly --api-sock (default /run/firecracker.socket)
      --json            print the body of the response unchanged, for programs; prints nothing if it is empty
      --timeout SECONDS stop waiting for a response after SECONDS, 1 to 3600 (default 10)

exit status:
  0     success
  1     the server rejects the request, does not respond, or does not exist; the message states the cause
  2     usage error

Try:   mayfly ctl --api-sock /tmp/vm.sock status
       mayfly ctl --api-sock /tmp/vm.sock status --registers
       mayfly ctl --api-sock /tmp/vm.sock console
       mayfly ctl --api-sock /tmp/vm.sock metrics | grep mayfly_vcpu_exits
       mayfly ctl --api-sock /tmp/vm.sock drive rootfs --bandwidth 10M/1000 --ops 500/1000/2000
       mayfly ctl --api-sock /tmp/vm.sock net eth0 --rx-bandwidth off
       mayfly ctl --api-sock /tmp/vm.sock --json config | jq .drives
       mayfly ctl --api-sock /tmp/vm.sock request PUT /machine-config '{\"vcpu_count\":2,\"mem_size_mib\":256}'
       mayfly ctl --api-sock /tmp/vm.sock request PUT /boot-source - < boot.json
";
