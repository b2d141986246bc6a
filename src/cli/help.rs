//! Help texts.

/// Topic of a help text.
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
    /// `mayfly version`
    Version,
    /// Firecracker's command line.
    Firecracker,
    /// `mayfly restore`
    Restore,
    /// `mayfly shell`
    Shell,
    /// `mayfly snapshot`, `snapshot-info` and `snapshot-merge`
    Snapshot,
}

impl Topic {
    /// Returns the help text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Mayfly => MAYFLY,
            Self::Run => RUN,
            Self::Inspect => INSPECT,
            Self::Demo => DEMO,
            Self::Version => VERSION,
            Self::Firecracker => FIRECRACKER,
            Self::Restore => RESTORE,
            Self::Shell => SHELL,
            Self::Snapshot => SNAPSHOT,
        }
    }
}

/// Options of the isolation, which several commands have.
macro_rules! isolation_options {
    () => {
        "\
Isolation (docs/security.md):
      --allow DIR       open files in DIR while the guest runs, for snapshots, drives and images that a client names;
                        repeat it for more (default: with an API socket all files, otherwise none)
      --no-seccomp      install no seccomp filters (default: each thread may make the system calls of its role)
      --seccomp-filter FILE
                        install the filters of FILE, made by Firecracker's seccompiler-bin for the roles vmm and vcpu
      --keep-capabilities
                        keep capabilities while the guest runs (default: drop all, even for root)

"
    };
}

/// Options of the debugger, which several commands have.
macro_rules! debug_options {
    () => {
        "\
Debug the guest with gdb (docs/debugging.md):
      --gdb ADDRESS     stop the guest before its next instruction, and wait for gdb at ADDRESS: the path of a unix
                        socket, or HOST:PORT. In gdb: target remote ADDRESS (default none)
      --gdb-nowait      let the guest run until gdb attaches
      --gdb-public      permit an ADDRESS that other hosts reach: each client there controls the VM

"
    };
}

/// Option of the serial console, which several commands have.
macro_rules! console_options {
    () => {
        "\
Connect the serial console (docs/console.md):
      --serial END      connect the guest's serial port with END (default stdio):
                          stdio      stdin and stdout
                          unix:PATH  a new unix socket for any number of clients, such as mayfly ctl console
                          pty        a new pseudoterminal, whose path mayfly prints
                          file:PATH  a file or FIFO, for output alone
                        Clients attach and detach at any time, and receive the last 64 KiB of output first

"
    };
}

/// Options of the suspend, which several commands have.
macro_rules! suspend_options {
    () => {
        "\
Suspend the VM, which ends mayfly with status 123 (docs/scale-to-zero.md):
      --suspend-to DIR  create the snapshot of a suspend in the existing directory DIR, as a generation that replaces
                        the one before when it is complete; mayfly restore DIR continues the guest (default none)
      --idle-after MS   suspend a VM whose guest is idle for MS milliseconds, 1 to 86400000 (default: only mayfly ctl
                        suspend does)
      --idle-cpu PERCENT
                        permit an idle guest PERCENT of one processor, 1 to 100 (default 5)
      --stateless       end without a snapshot

Keep the state of a crash:
      --core-on-crash DIR
                        after a triple fault or an error of KVM, create a snapshot in the existing directory DIR, of
                        which mayfly core DIR FILE makes an ELF core for gdb (default none)

"
    };
}

const MAYFLY: &str = "\
mayfly - a minimal virtual machine monitor for unikernels on KVM

usage: mayfly COMMAND [ARGUMENT ...]

Run a VM; each mayfly process is one VM:
  run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]
                        boot an image with its serial console on this terminal
  restore DIR           load the snapshot in DIR and resume the VM
  shell SOCKET          make a VM in advance, into which restore --shell SOCKET DIR loads a snapshot sooner
  demo                  boot the guest embedded in mayfly and explain its output
  --api-sock SOCKET [FLAG ...]
                        serve Firecracker's REST API on a unix socket; see mayfly help firecracker

Control a running VM over its API socket:
  ctl COMMAND           show its state, configuration or metrics; start, pause, resume or stop it; change devices
  snapshot DIR          create a snapshot of a running VM in DIR

Keep many VMs suspended until a frame wakes them:
  standby --api-sock SOCKET --state-dir DIR [OPTION ...]
                        supervise the instances of this host; see mayfly help standby

Read files; no KVM required:
  inspect KERNEL        show format, segments and boot protocols of an image, or the program of an OCI image
  snapshot-info DIR     describe a snapshot
  snapshot-merge DIR DIFF ...
                        merge diff snapshots into the snapshot in DIR
  core DIR|--api-sock SOCKET FILE
                        make an ELF core of a snapshot or of a running VM, for gdb

Check the installation:
  doctor [--json]       check the needs of mayfly on this host, with remedies
  version [--json]      print the version; with --json also those of the API and of the snapshot format
  help [COMMAND]        show the options of a command, its exit status and examples
  --version             print the version

The guest's output goes to stdout, mayfly's messages to stderr.

Try:   mayfly demo
       mayfly inspect /boot/vmlinuz
       mayfly run unikernel.elf --memory 64M -- hello
";

const RUN: &str = concat!(
    "\
mayfly run - boot an image

usage: mayfly run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]

KERNEL is an ELF image, a Linux bzImage, an arm64 Image, or a flat multiboot image; or oci:LAYOUT[:TAG][@DIGEST] or
oci-archive:FILE[:TAG][@DIGEST], an image for urunc or Kraft in an OCI layout (docs/images.md). All arguments after the
first lone -- form the guest's command line, including any further --; they replace that of an OCI image, as --initrd
and --disk replace its files.

Set up the machine:
  -m, --memory SIZE     set the guest's memory, such as 64M, 2G or 65536K; default unit M (default 128M, minimum 1M)
      --cpus N          set the number of vCPUs, 1 to 32 (default 1)
      --initrd FILE     load an initial RAM disk, or the first module of a multiboot image (default none)
      --protocol NAME   boot by protocol linux (64-bit, boot_params), pvh or multiboot (version 1). mayfly inspect
                        shows the protocols of an image (default: pvh by a note, multiboot by a header, else linux)
      --machine MAP     use memory map fc (memory from 0x80000000, 16550) or virt (from 0x40000000, PL011). mayfly
                        inspect shows the default. aarch64 only (default: by the address of an ELF image, else fc)
      --gic VERSION     create a GICv2 (2) or GICv3 (3); aarch64 only (default: the newest that the host supports)
      --cpu-features LIST
                        give the guest processor features, such as sve,pauth. aarch64: sve (vectors), pauth (pointer
                        authentication). x86_64, as far as KVM supports them: virtualization, pmu (performance
                        counters), trace, sgx, resource-control, tsx (default: none)
      --irqchip MODE    emulate IOAPIC, PIC and PIT in mayfly (split) or in KVM (kernel). split starts and ends
                        faster; x86_64 only (default split)
      --no-acpi         omit the ACPI tables; x86_64 only
      --no-mptable      omit the MP table; x86_64 only
      --no-device-arguments
                        omit device addresses from the guest's command line; x86_64 only (default: add them before its
                        first --)

Attach devices; repeat these options for more, up to 18 devices:
      --disk PATH[,ro][,shared][,cache=unsafe|writeback][,engine=sync|async][,id=NAME]
                        attach a raw file or block device as a drive. ro: reject writes of the guest.
                        shared: other VMs with shared drives may write it too (default: they cannot).
                        cache: writeback offers a flush command, unsafe does not (default unsafe).
                        engine: async submits requests by io_uring (default sync). Double a comma in PATH
      --net BACKEND[,id=NAME][,mac=ADDRESS][,mtu=BYTES]
                        attach a network interface. BACKEND is one of
                          tap:NAME   a tap device of this name
                          fd:NUMBER  a tap device open as this inherited descriptor
                          unix:PATH  the socket of a running passt or another monitor
                          user       a passt that mayfly starts for this interface
      --net BACKEND,guest-ip=ADDRESS,ip=ADDRESS[,guest-mac=ADDRESS,mac=ADDRESS][,pass=ipv6]
                        rewrite the addresses of the guest: the network sees the interface at the addresses ip and mac.
                        Drops other protocols than IPv4 and ARP; pass: pass IPv6 (default: rewrite no address)
      --net user[,tcp=[ADDRESS/]PORT[:GUEST PORT]][,udp=...][,address=ADDRESS/PREFIX][,gateway=ADDRESS]
                        forward ports of this host, at all its addresses or one; repeat tcp and udp for more. address,
                        gateway: those of the guest, which passt also assigns by DHCP, with a prefix from 1 to 30
                        (default: those of this host)

  Limit the rate of a drive by bandwidth=BYTES/MILLISECONDS[/BURST] and ops=NUMBER/MILLISECONDS[/BURST], further
  options of --disk. Limit that of an interface by rx-bandwidth and rx-ops (to the guest), tx-bandwidth and tx-ops (from
  the guest). Example: --disk data.img,bandwidth=1048576/100 permits 1 MiB in 100 ms (default unlimited).

Measure:
      --timings         print the length of each phase on stderr, from exec to the first exit and output of the guest
      --trace FILE      write the phases to FILE as a Chrome trace; open it in https://ui.perfetto.dev
      --profile FILE    sample the functions of the guest, and write their stacks to FILE at the end of the VM, and to
                        the trace (docs/profiling.md; default none)
      --hz N            take N samples per second of processor time of a vCPU, 1 to 1000 (default 99)

Log:
      --log-level LEVEL log messages of this level and above: off, error, warning, info, debug or trace (default
                        warning)
      --log-file PATH   write the log to this file or FIFO; SIGHUP reopens it (default stderr)

",
    console_options!(),
    suspend_options!(),
    debug_options!(),
    isolation_options!(),
    "\
Control the VM from other processes:
      --api-sock PATH   serve Firecracker's REST API on this unix socket, for mayfly ctl and other clients (default
                        none)
      --id NAME         name the VM: 1 to 64 letters, digits and hyphens (default anonymous-instance)

Keys of a terminal on stdin (--serial stdio): Ctrl-A x ends the VM, Ctrl-A h lists the keys. Others go to the guest.

exit status:
  0     the guest powered off or reset, or the user pressed Ctrl-A x
  N     the guest wrote N to the debug-exit port 0x501: the low 8 bits of N, or 255 if those are 0 and N is not
  1     mayfly cannot boot the image; the message states the cause
  2     usage error
  120   triple fault of the guest
  121   KVM cannot run the guest any further, or the mapped image or memory file was truncated
  122   mayfly has no memory left
  123   the VM is suspended
  148   a seccomp filter refused a system call
SIGTERM, SIGINT and SIGQUIT end mayfly at once, by that signal. So does SIGHUP without a log file.

Try:   mayfly run unikernel.elf --memory 64M -- hello
       mayfly run unikernel.elf --disk data.img,ro --net user
       mayfly run unikernel.elf --timings
       mayfly run oci:layout:v1 --memory 64M
"
);

const INSPECT: &str = "\
mayfly inspect - show format, segments and boot protocols of an image

usage: mayfly inspect KERNEL

Prints the format, the segments, the notes and the entry points of the image. For each segment, shows the number of
bytes mapped from the file, read, and zeroed. For each boot protocol, shows if the image supports it, and the reason.
For oci:LAYOUT[:TAG][@DIGEST] or oci-archive:FILE[:TAG][@DIGEST], first prints platform, digest, kernel, command line,
initrd and disk of the OCI image, each with its source (docs/images.md). Requires no KVM.

exit status:
  0     mayfly run can boot the image
  1     mayfly run cannot boot the image; the message states the cause
  2     usage error

Try:   mayfly inspect /boot/vmlinuz
       mayfly inspect oci:layout:v1
";

const DEMO: &str = "\
mayfly demo - boot the guest embedded in mayfly and explain its output

usage: mayfly demo

Needs nothing but /dev/kvm. Boots the guest, then prints the times measured in this run, with their meaning. If KVM is
unavailable, the message states the remedy. The exit status is that of mayfly run.
";

const VERSION: &str = "\
mayfly version - print the version

usage: mayfly version [--json]

options:
      --json            print an object: version; commit (null if the build does not state it); architecture;
                        firecracker_api, the release of Firecracker whose API mayfly serves; snapshot_format, the
                        version of the snapshots that mayfly creates

exit status:
  0     success
  2     usage error

Try:   mayfly version --json
";

const FIRECRACKER: &str = concat!(
    "\
mayfly --api-sock - serve Firecracker's REST API

usage: mayfly FLAG ...
       firecracker [FLAG ...]   if mayfly is called by this name (ln -s mayfly firecracker)

Supports the flags, API, configuration file and exit statuses of Firecracker. Rejects unsupported flags and requests
with a message that names them.

Serve:
      --api-sock PATH   create the API socket at PATH and remove it at exit (default /run/firecracker.socket)
      --no-api          serve no API; requires --config-file
      --config-file PATH
                        configure the VM by this JSON file and start it at once (default none)
      --id ID           name the VM: 1 to 64 letters, digits and hyphens (default anonymous-instance)
      --http-api-max-payload-size BYTES
                        limit the body of a request (default 51200)

Log:
      --log-path PATH   write the log to this file or FIFO; SIGHUP reopens it (default stderr)
      --level LEVEL     log messages of this level and above: Off, Error, Warning, Info, Debug or Trace (default
                        Warning)
      --module PATH     log messages of this module and its submodules only (default: all)
      --show-level      show the level in each line
      --show-log-origin show source file and line in each line
      --metrics-path PATH
                        write a line of JSON to this file or FIFO each minute and at each FlushMetrics action
                        (default none)

Keep the state of a crash:
      --core-on-crash DIR
                        as in mayfly run; Firecracker has no such flag

",
    isolation_options!(),
    "\
Print a version and exit:
      --version         print mayfly's version, or Firecracker's if called by that name
      --snapshot-version
                        print the format version of the snapshots that mayfly creates
      --describe-snapshot PATH
                        print the format version of a state file, which mayfly need not be able to load

Accepted without effect: --boot-timer, --mmds-size-limit N, --start-time-us N, --start-time-cpu-us N,
--parent-cpu-time-us N.

exit status:
  0     the guest powered off or reset
  N     the guest wrote N to the debug-exit port 0x501
  1     failure, or triple fault of the guest; the message states the cause
  122   mayfly has no memory left
  123   the VM is suspended
  148   a seccomp filter refused a system call
  149   the mapped image or memory file was truncated
  152   unknown log level
  153   usage error
SIGTERM, SIGINT and SIGQUIT end mayfly at once, by that signal. So does SIGHUP without a log or metrics file.

Try:   mayfly --api-sock /tmp/vm.sock &
       curl --unix-socket /tmp/vm.sock http://localhost/machine-config
       mayfly ctl --api-sock /tmp/vm.sock status
"
);

const RESTORE: &str = concat!(
    "\
mayfly restore - load a snapshot and resume the VM

usage: mayfly restore DIR [OPTION ...]

DIR holds the files state and memory of mayfly snapshot, or the generations of --suspend-to, of which the last is
loaded. Memory is mapped, not read: the first access of the guest to a page reads it, and writes of the guest stay
private to this VM. Any number of VMs can load one snapshot. Do not change the memory file while one of them runs.

Override the devices; repeat these options for more:
      --net ID=BACKEND  connect interface ID to another backend, as in mayfly run: eth0=tap:tap1 (default: as saved)
      --net ID=user[,tcp=[ADDRESS/]PORT[:GUEST PORT]][,udp=...][,address=ADDRESS/PREFIX][,gateway=ADDRESS]
                        forward ports of this host, as in mayfly run; snapshots do not save them (default none)
      --net ID=BACKEND,guest-ip=ADDRESS,ip=ADDRESS[,guest-mac=ADDRESS][,mac=ADDRESS][,pass=ipv6]
                        also give the clone addresses of its own, ip and mac, in place of those that its guest uses
                        (default: the network sees the guest's addresses; default of guest-mac: as saved)
      --first-frames [ID=]FD
                        pass the frames in the open file FD, such as a memfd, to interface ID (default: the first one)
                        before those of its backend. docs/networking.md has the format
      --disk ID=PATH[,ro]
                        connect drive ID to another file (default: as saved). ro: fail if the drive is read-write

Load a snapshot of an untrusted source:
      --untrusted       open no file, tap, socket or process that only the state file names: --disk and --net must name
                        the host side of each drive and interface. mayfly snapshot-info DIR lists them (default: open
                        the host sides in the state file)
      --ignore-drive-changes
                        load although the disk of a drive has changed since the snapshot, by its length or
                        modification time (default: fail with status 119, unless --disk names another file)
      --mask-cpu        remove processor features of the guest that this host does not support, and log their names; a
                        guest that uses them may crash (default: fail with their names)

Control the start:
      --paused          leave the guest paused; mayfly ctl resume resumes it
      --realtime        advance the guest's clock by the time since the snapshot (default: the clock continues where it
                        stopped)

Use a VM that is made in advance:
      --shell SOCKET    load the snapshot into the mayfly shell at SOCKET, which passes its exit status to this process;
                        the VM ends when this process ends (default: make the VM in this process)

Prefetch a working set, the pages that a guest touches first:
      --record-working-set FILE
                        record the pages that the guest touches and writes; ends after --record-ms, at the end of the
                        guest, or at a snapshot. Requires /proc
      --record-ms N     record for N milliseconds of guest time, 1 to 600000 (default 100)
      --working-set FILE
                        prefetch the recorded pages: copy written ones, up to 64 MiB, while the guest starts; if the
                        memory file is not in the page cache, read it in large chunks instead. Prefetched pages count
                        as changed: a diff snapshot contains them. FILE must be recorded with the same snapshot

",
    console_options!(),
    suspend_options!(),
    debug_options!(),
    "\
Further options:
      --timings, --trace FILE, --profile FILE, --hz N, --api-sock PATH, --id NAME, --log-level LEVEL, --log-file PATH,
      --allow DIR, --no-seccomp, --seccomp-filter FILE, --keep-capabilities
                        as in mayfly run

A snapshot loads on hosts with the same architecture and processor; mayfly snapshot-info DIR shows both. Its disks and
taps must exist under their saved names unless overridden.

exit status: that of mayfly run, or
  119   the disk of a drive has changed since the snapshot

Try:   mayfly restore /var/snapshots/web --net eth0=tap:tap1
       mayfly restore /var/snapshots/web --net eth0=tap:tap1,guest-ip=10.0.0.2,ip=10.0.7.1
       mayfly restore /var/snapshots/web --record-working-set web.set
       mayfly restore /var/snapshots/web --working-set web.set
"
);

const SHELL: &str = concat!(
    "\
mayfly shell - make a VM in advance, and wait for a snapshot to load into it

usage: mayfly shell SOCKET|fd:NUMBER [OPTION ...]

A shell has VM, memory slots, interrupt controllers and vCPUs of a shape: memory size, number of vCPUs, irqchip. It
waits at SOCKET, which exists once the VM does, for one snapshot of this shape. mayfly restore --shell SOCKET DIR sends
the snapshot, its arguments and its stdin, stdout and stderr, and gets the exit status of the VM. The shell refuses a
snapshot of another shape, and waits on. It needs no processor time and holds no file of a client while it waits.

With fd:NUMBER it waits on a connected socket that it has inherited, and ends when the other side is closed.
docs/snapshots.md describes the messages.

Set up the VM:
      --for DIR         take the shape of the snapshot in DIR (default: 1 vCPU, 128M, irqchip split)
  -m, --memory SIZE     set the guest's memory (default: as --for, or 128M)
      --cpus N          set the number of vCPUs (default: as --for, or 1)

",
    isolation_options!(),
    "\
exit status: after a request that of mayfly run, which its client also gets unless the shell is killed; before,
  0     the other side of fd:NUMBER is closed
  1     the VM cannot be made, or the socket cannot be created
  2     usage error

Try:   mayfly shell /run/shell.sock --for /var/snapshots/web &
       mayfly restore --shell /run/shell.sock /var/snapshots/web --net eth0=tap:tap1
"
);

const SNAPSHOT: &str = "\
mayfly snapshot - create a snapshot of a running VM in a directory

usage: mayfly snapshot DIR [--api-sock SOCKET] [--diff]
       mayfly snapshot-info DIR
       mayfly snapshot-merge DIR DIFF ...

snapshot pauses the VM, writes the files state and memory into DIR, and resumes the VM. The memory file has the size of
the guest's memory, with holes for pages that the guest never wrote.
      --api-sock SOCKET connect to this API socket of the VM (default /run/firecracker.socket)
      --diff            write only the pages that changed since the VM was restored; with track_dirty_pages in the API,
                        since the last snapshot. In the DIR of that snapshot, update it (default: write all pages)

snapshot-info describes a snapshot: host, machine, devices and sizes. Given a working set, it shows the number of its
pages.

snapshot-merge merges diff snapshots, in the given order, into the snapshot in DIR, which is the base of the first.

exit status:
  0     success
  1     failure; the message states the cause, and the VM runs on
  2     usage error

Try:   mayfly run unikernel.elf --api-sock /tmp/vm.sock &
       mayfly snapshot /var/snapshots/web --api-sock /tmp/vm.sock
       mayfly snapshot-info /var/snapshots/web
       mayfly restore /var/snapshots/web
";
