//! Help text.

/// Text of `--help`.
pub const TEXT: &str = "\
mayfly-jailer confines a VMM, then becomes it: a root directory, namespaces, cgroups and a user of its own.
Its options are those of Firecracker's jailer. Run it as root.

Usage: mayfly-jailer --id ID --exec-file FILE --uid UID --gid GID [OPTIONS] [-- ARGUMENTS OF THE VMM]

Example: start mayfly as user 1000 in the jail /srv/jailer/mayfly/vm1/root
  mkdir -p /srv/jailer
  mayfly-jailer --id vm1 --exec-file /usr/local/bin/mayfly --uid 1000 --gid 1000 -- --api-sock /run/api.sock
  ln KERNEL /srv/jailer/mayfly/vm1/root/kernel
  mayfly ctl --api-sock /srv/jailer/mayfly/vm1/root/run/api.sock PUT /boot-source '{\"kernel_image_path\":\"kernel\"}'
Paths in requests are paths in the jail. User 1000 must be able to read the kernel and to write the drives.

Required:
  --id ID                 name of the jail: 1 to 64 letters, digits and hyphens
  --exec-file FILE        program to start: a static executable. The jail gets a copy
  --uid UID, --gid GID    user and group of the VMM, as numbers

Place:
  --chroot-base-dir DIR   directory of all jails (/srv/jailer); the jail is DIR/NAME OF FILE/ID/root
  --force                 remove the files of an earlier VMM in this jail, if it has ended

Namespaces and session:
  --netns PATH            join this network namespace, for example /run/netns/NAME
  --new-pid-ns            start the VMM as process 1 of a PID namespace; the jailer exits once it has started
  --daemonize             start the VMM in a session of its own, with /dev/null as stdin, stdout and stderr; the jailer
                          exits once it has started

Limits:
  --cgroup FILE=VALUE     write VALUE to FILE of the VM's cgroup; repeat it for more, for example
                          --cgroup memory.max=256M --cgroup cpu.max='50000 100000' with --cgroup-version 2
  --cgroup-version 1|2    hierarchy for --cgroup (1)
  --parent-cgroup PATH    cgroup above the VM's cgroup, relative to the hierarchy (name of FILE)
  --resource-limit no-file=N   maximum number of open files (2048)
  --resource-limit fsize=N     maximum size in bytes of a file that the VMM writes (unlimited)

Other:
  --help, --version       print this text, or the version

The VMM gets descriptors 0, 1 and 2, no environment, and no supplementary group. The file NAME.pid in the jail has its
process ID. If a step fails, the jailer removes what it created and exits with status 1.
";
