//! Help texts.

/// What help is wanted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The program.
    Mayfly,
    /// `mayfly run`
    Run,
    /// `mayfly inspect`
    Inspect,
    /// `mayfly demo`
    Demo,
    /// mayfly in the place of Firecracker
    Firecracker,
    /// `mayfly ctl`
    Ctl,
    /// `mayfly restore`
    Restore,
    /// `mayfly snapshot`, `snapshot-info` and `snapshot-merge`
    Snapshot,
}

impl Topic {
    /// The text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Mayfly => MAYFLY,
            Self::Run => RUN,
            Self::Inspect => INSPECT,
            Self::Demo => DEMO,
            Self::Firecracker => FIRECRACKER,
            Self::Ctl => CTL,
            Self::Restore => RESTORE,
            Self::Snapshot => SNAPSHOT,
        }
    }
}

const MAYFLY: &str = "\
mayfly - a minimal virtual machine monitor for unikernels on KVM

usage: mayfly run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]
                           boot an image; its serial console is your terminal
       mayfly inspect KERNEL
                           say what booting an image would do, and why
       mayfly demo         boot the guest inside mayfly and explain what is seen
       mayfly --api-sock SOCKET [FLAG ...]
                           serve a VM by Firecracker's REST API: mayfly help firecracker
       mayfly ctl COMMAND  ask a running mayfly over its API socket: status, metrics, pause, resume, ...
       mayfly snapshot DIR --api-sock SOCKET
                           freeze a running machine into a folder: mayfly help snapshot
       mayfly restore DIR  let the machine in that folder go on
       mayfly help [COMMAND]
       mayfly --version

One process is one virtual machine. What the guest prints goes to stdout, what mayfly has to say goes to stderr.

Try:   mayfly demo
       mayfly inspect /boot/vmlinuz
       mayfly run unikernel.elf --memory 64M -- hello
";

const RUN: &str = "\
mayfly run - boot an image

usage: mayfly run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]

KERNEL is an ELF image, a Linux bzImage, or a flat multiboot image. Everything after the first lone -- is the guest's
command line, further -- included.

machine:
  -m, --memory SIZE     guest memory: 64M, 2G, 65536K; M where no unit is given (default 128M, at least 1M)
      --cpus N          vCPUs, 1 to 32 (default 1)
      --initrd FILE     initial RAM disk, or what the image takes in its place (a multiboot module)
      --protocol NAME   enter the guest by this protocol, not by the one that the image's notes and headers pick: linux
                        (64-bit, boot_params), pvh, or multiboot (version 1); mayfly inspect shows which are possible
      --irqchip WHERE   split: IOAPIC, PIC and PIT in mayfly (default, starts and ends quicker); kernel: all in KVM
      --no-acpi         no ACPI tables for the guest
      --no-mptable      no MP table for the guest
      --no-device-arguments
                        do not name the guest's devices on its command line, before the first --

devices, each as often as you like, up to 18 in all:
      --disk PATH[,ro][,cache=unsafe|writeback][,engine=sync|async][,id=NAME]
                        a drive on a raw file or block device; ro: the guest may only read it; writeback: it can flush;
                        async: by io_uring; a comma in PATH is written twice
      --net BACKEND[,id=NAME][,mac=ADDRESS][,mtu=BYTES]
                        a network interface on tap:NAME, a tap device; fd:NUMBER, one that mayfly was started with;
                        unix:PATH, a socket on which passt or another monitor serves; user, a passt of its own

  Limits, as further options: bandwidth=BYTES/MILLISECONDS[/BURST] and ops=NUMBER/MILLISECONDS[/BURST] for a drive, the
  same as rx-bandwidth, rx-ops, tx-bandwidth and tx-ops for what an interface receives and transmits.

what mayfly tells, on stderr:
      --timings         how long each phase took, from exec to the guest's first exit and its first output
      --trace FILE      the same as a Chrome trace; open it in https://ui.perfetto.dev

      --log-level LEVEL what is logged: off, error, warning (default), info, debug or trace
      --log-file PATH   log to this file or FIFO instead of stderr; SIGHUP opens it again

to control the machine from outside:
      --api-sock PATH   serve Firecracker's REST API on this unix socket, and mayfly ctl; see mayfly help firecracker
      --id NAME         name of the machine, 1 to 64 letters, digits and hyphens

On a terminal: Ctrl-A x ends the machine, Ctrl-A h lists the keys.

exit status:
  0     the guest powered off or reset itself, or you ended it by Ctrl-A x
  N     the guest wrote N to its debug-exit port 0x501 (its low 8 bits, or 255 where those alone would be 0)
  1     mayfly could not boot the image; the message says why
  2     the command line makes no sense
  120   the guest's processor shut down (triple fault)
  121   KVM could not go on with the guest
SIGTERM, SIGINT and SIGQUIT end mayfly at once, by that signal; SIGHUP too, unless there is a log file to open again.
";

const INSPECT: &str = "\
mayfly inspect - say what booting an image would do, and why

usage: mayfly inspect KERNEL

Prints the format, the segments and whether each is mapped from the file or read, the notes, the entry points, and which
boot protocols are possible and why. Needs no KVM. Exit status 0 when the image can be booted, else 1.
";

const DEMO: &str = "\
mayfly demo - boot the guest inside mayfly and explain what is seen

usage: mayfly demo

Needs nothing but /dev/kvm; where that is missing or not permitted, it says what to do.
";

const FIRECRACKER: &str = "\
mayfly --api-sock - serve a VM by Firecracker's REST API

usage: mayfly [FLAG ...]   with at least one flag, or called by the name firecracker (ln -s mayfly firecracker)

Takes Firecracker's flags, its API on a unix socket, its configuration file, and ends with its exit codes. What of it is not
part of mayfly is refused, with a message that names it.

      --api-sock PATH      control socket (default /run/firecracker.socket); removed at the end
      --config-file PATH   configure the VM by this JSON file and start it at once
      --no-api             no control socket; needs --config-file
      --id ID              name of the VM, 1 to 64 letters, digits and hyphens (default anonymous-instance)
      --log-path PATH      write the log to this file or FIFO; SIGHUP opens it again
      --level LEVEL        Off, Error, Warning, Info, Debug or Trace
      --show-level, --show-log-origin
                           have the level, and the line of source code, in each line of the log
      --module PATH        log only what comes from this module and those in it
      --metrics-path PATH  write metrics to this file or FIFO, a JSON text a line, every minute and when asked
      --http-api-max-payload-size BYTES
                           the longest body of a request (default 51200)
      --no-seccomp, --boot-timer, --mmds-size-limit N, --start-time-us N, --start-time-cpu-us N, --parent-cpu-time-us N
                           are taken and change nothing
      --version            mayfly's version; Firecracker's when called by its name
      --snapshot-version   the version of the format of the snapshots that are made
      --describe-snapshot PATH
                           the version of the format of this state file, which may be one that cannot be loaded

exit status:
  0     the guest powered off or reset itself
  N     the guest wrote N to its debug-exit port 0x501
  1     something failed, or the guest's processor shut down; the message says which
  152   there is no such log level
  153   the flags make no sense
SIGTERM, SIGINT and SIGQUIT end mayfly at once, by that signal; SIGHUP too, unless there is a log or metrics file to open again.

Try:   mayfly --api-sock /tmp/vm.sock &
       curl --unix-socket /tmp/vm.sock http://localhost/machine-config
       mayfly ctl --api-sock /tmp/vm.sock status
";

const CTL: &str = "\
mayfly ctl - ask a running mayfly, or Firecracker, over its API socket

usage: mayfly ctl [--api-sock PATH] [--json] [--timeout SECONDS] COMMAND

look:
  status                where the VM is in its life, and its size
  config                how it is configured, with its drives, interfaces and limits
  metrics               what it has done: phases of its start, exits, requests, packets; half of all requests took at
                        most what p50 says and 99 of 100 what p99 says, as far as the server's histograms tell

act:
  start                 start a VM that is configured
  pause, resume         keep its guest from running, and let it run again
  stop                  press Ctrl-Alt-Del on the guest's keyboard (x86_64 only). The guest has to listen for that and to
                        end by itself: Linux reboots, which ends mayfly; most unikernels do not listen. What always ends
                        a VM is to end its process: kill PID
  flush-metrics         write a line to the metrics file, if one was configured

change, while the guest runs:
  drive ID [--path PATH] [--bandwidth LIMIT] [--ops LIMIT]
                        go on with the file at PATH, as the server sees it; limit the drive; with no option, have the
                        guest told the size that the file has by now
  net ID [--rx-bandwidth LIMIT] [--rx-ops LIMIT] [--tx-bandwidth LIMIT] [--tx-ops LIMIT]
                        limit what the guest receives (rx) and transmits (tx)
  LIMIT is AMOUNT/MILLISECONDS[/BURST], or off: so much in so much time, and BURST more once. Bandwidth is in bytes, with
  K, M, G or T behind the number if you like; ops are requests or packets. What is not given stays as it is.

anything else:
  request METHOD PATH [BODY|-]
                        make any request of the API; BODY is JSON, - reads it from stdin

options:
      --api-sock PATH   the socket, as given to mayfly --api-sock (default /run/firecracker.socket)
      --json            print the server's answer as it came, for programs: JSON, or for metrics the text format of
                        Prometheus; nothing where there is nothing to tell
      --timeout SECONDS give up on a server that has not answered by then, 1 to 3600 (default 10)

Try:   mayfly ctl --api-sock /tmp/vm.sock status
       mayfly ctl --api-sock /tmp/vm.sock drive rootfs --bandwidth 10M/1000 --ops 500/1000/2000
       mayfly ctl --api-sock /tmp/vm.sock net eth0 --rx-bandwidth off
       mayfly ctl --api-sock /tmp/vm.sock --json config | jq .drives
       mayfly ctl --api-sock /tmp/vm.sock request PUT /machine-config '{\"vcpu_count\":2,\"mem_size_mib\":256}'
       mayfly ctl --api-sock /tmp/vm.sock request PUT /boot-source - < boot.json

exit status:
  0     done
  1     not done: the server refuses or does not answer, or there is none; the message says why
  2     the command line makes no sense
";

const RESTORE: &str = "\
mayfly restore - let a machine go on from a snapshot

usage: mayfly restore DIR [OPTION ...]

DIR holds the files state and memory, as mayfly snapshot makes them. Memory is mapped, not read: a page is fetched when the
guest touches it, and what it writes stays with this machine, so that any number of machines can go on from one snapshot. Nobody
may change the memory file as long as one of them lives.

      --net ID=BACKEND  have the interface ID on another back end, as in mayfly run: eth0=tap:tap1
      --disk ID=PATH    have the drive ID on another file
      --paused          leave the guest paused; mayfly ctl resume lets it go on
      --realtime        have the guest's clock jump to where it would stand had it never stopped
      --record-working-set FILE
                        write down which pages the guest touches, and which of them it writes, in its first 100 ms, or until
                        it ends or is frozen
      --record-ms N     record for N milliseconds of the guest's time, 1 to 600000
      --working-set FILE
                        have those pages ready before the guest asks for them one by one: what it wrote is copied for it
                        while it begins to run, up to 64 MiB; when the memory file is not in the host's memory, it is read
                        in large pieces instead. Pages that are ready count as changed: a difference holds them
      --timings, --trace FILE, --api-sock PATH, --id NAME, --log-level LEVEL, --log-file PATH
                        as in mayfly run

A working set belongs to the snapshot that it was recorded with, and to no other. To record takes /proc.

A snapshot goes to hosts of the same architecture and processor: mayfly snapshot-info DIR says which. Its disks and taps must
be there under their names, or be given other ones. The exit status is that of mayfly run.
";

const SNAPSHOT: &str = "\
mayfly snapshot - freeze a running machine into a folder

usage: mayfly snapshot DIR [--api-sock SOCKET] [--diff]
       mayfly snapshot-info DIR
       mayfly snapshot-merge DIR DIFFERENCE ...

snapshot pauses the machine behind the socket (default /run/firecracker.socket), has it write the files state and memory into
DIR, and lets it go on. The memory file is as long as the guest's memory and has holes where the guest never wrote.
      --diff            write only what differs from the snapshot that the machine was restored from; when DIR is that
                        snapshot, what changed is written into it
snapshot-info says what a snapshot is of: host, machine, devices, sizes; of a working set it says how many pages it has.
snapshot-merge merges differences, in their order, into the snapshot that the first of them differs from.

exit status: 0 done, 1 not done, with a message that says why; the machine goes on all the same. 2: the command line makes no
sense.
";
