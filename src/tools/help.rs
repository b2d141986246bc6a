//! Help texts.

/// The program, which mayfly executes.
pub const TOOLS: &str = "\
mayfly-tools - the commands of mayfly that start no VM

usage: mayfly doctor [--json]
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
