//! Help text.

/// Text of `--help`.
pub const TEXT: &str = "\
mayfly-jailer - confine a VMM, then become it

usage: mayfly-jailer --id ID --exec-file FILE --uid UID --gid GID [OPTIONS] [-- ARGUMENTS OF THE VMM]

The VMM gets a root directory with only its program and devices, namespaces, cgroups, limits and a user of its own; descriptors 0
to 2, no environment and no supplementary group. Options and steps are those of Firecracker's jailer. Run it as root.

required:
  --id ID                 name of the jail: 1 to 64 letters, digits and hyphens
  --exec-file FILE        program to start: a static executable. The jail gets a copy
  --uid UID, --gid GID    user and group of the VMM, as numbers

place:
  --chroot-base-dir DIR   directory of all jails (default /srv/jailer), which must exist. The root directory of the VMM is
                          DIR/NAME OF FILE/ID/root; files that you put there stay
  --force                 remove devices, PID file and default API socket of an earlier VMM in this jail, if it has ended

namespaces and session:
  --netns PATH            join this network namespace, for example /run/netns/NAME
  --new-pid-ns            start the VMM as process 1 of a PID namespace; the jailer exits once the VMM has started
  --daemonize             start the VMM in a session of its own, with /dev/null as stdin, stdout and stderr; the jailer exits
                          once the VMM has started

limits:
  --cgroup FILE=VALUE     write VALUE to FILE of the cgroup of the VM; may be repeated
  --cgroup-version 1|2    hierarchy of --cgroup (default 1)
  --parent-cgroup PATH    cgroup above that of the VM, relative to the hierarchy (default: name of FILE)
  --resource-limit no-file=N
                          maximum number of open files (default 2048)
  --resource-limit fsize=N
                          maximum size in bytes of a file that the VMM writes (default: unlimited)

descriptors and arguments:
  --pass-fd N             leave the inherited descriptor N open for the VMM; may be repeated
  --plain-arguments       give the VMM only the arguments after --, without --id and the clocks of Firecracker's jailer

other:
  --help                  print this text
  --version               print the release of Firecracker's jailer with the same options

NAME OF FILE.pid in the root directory has the process ID of the VMM. If a step fails, the jailer undoes the steps before it,
and exits with status 1.

Try:   mkdir -p /srv/jailer
       mayfly-jailer --id vm1 --exec-file /usr/local/bin/mayfly --uid 1000 --gid 1000 -- --api-sock /run/api.sock &
       cp kernel /srv/jailer/mayfly/vm1/root/
       alias ctl='mayfly ctl --api-sock /srv/jailer/mayfly/vm1/root/run/api.sock'
       ctl request PUT /boot-source '{\"kernel_image_path\":\"kernel\"}'
       ctl start
       mayfly-jailer --id vm2 --cgroup-version 2 --cgroup memory.max=256M --cgroup cpu.max='50000 100000' ...
";
