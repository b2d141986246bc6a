//! Help text.

/// Text of `mayfly standby --help`.
pub const TEXT: &str = "\
mayfly standby - keep instances suspended, and wake them by a frame or a request

usage: mayfly standby --api-sock SOCKET --state-dir DIR [OPTION ...]

One process supervises all instances of a host. An instance is a snapshot with overrides. While it is suspended, no
process exists for it; a frame to its address or a request starts mayfly restore. docs/standby.md describes requests,
states and limits.

Required:
      --api-sock SOCKET serve the API on this unix socket, for its own user and root. A descriptor of systemd with the
                        name api is used, if it is the socket with this path
      --state-dir DIR   keep registrations, snapshots of suspended instances, sockets and logs here; DIR is created if
                        necessary. Instances go on when the supervisor ends, and a supervisor with the same DIR finds
                        them again

Limit the instances:
      --max-wakes N     start at most N instances at once, 1 to 10000 (default 8); others wait in the order of their
                        wakes
      --memory-limit SIZE
                        suspend the instance that is idle longest when running instances use more memory, such as 8G
                        (default: when the host has less than a sixteenth of its memory available)
      --timeout SECONDS maximum time of a wake, a suspend, a wait for memory and the read of a snapshot, 1 to 86400
                        (default 30)
      --max-instances N register at most N instances (default 1000000)
      --cgroup DIR      create the cgroups of limited instances in this directory of cgroup version 2, which this user
                        may change (default: reject limits)

Start the instances:
      --tap-fd N        use the inherited descriptor N, an open tap, for the host_dev_name of its interface; may be
                        repeated. Descriptors of systemd with the name tap are used, too
      --shells N        keep N processes with a VM ready for each shape in use, 0 to 1000 (default 0)
      --mayfly FILE     program of the instances (default: mayfly in the directory of this program)
      --jailer FILE     program of jailed instances (default: mayfly-jailer in the directory of this program)

Log:
      --log-level LEVEL log messages up to this level: Off, Error, Warning, Info, Debug or Trace (default Warning, with
                        --log-file Info)
      --log-file PATH   log to this file or FIFO (default: stderr)

exit status:
  0     ended by SIGTERM or SIGINT; instances go on
  1     failure; the message states the cause
  2     usage error
  122   no memory left

Try:   mayfly standby --api-sock /run/standby.sock --state-dir /var/lib/mayfly &
       mayfly ctl --api-sock /run/standby.sock instances
";
