//! Isolation of a mayfly that the guest controls: a thread of a running VM makes a call that none of its code makes.
//!
//! The test is the debugger of the thread: it sets the registers to those of a system call, and releases it. The kernel then ends the
//! process, which names the call.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fs;
use std::io;
use std::process::Command;
use std::ptr;

#[cfg(target_arch = "aarch64")]
use aarch64::set_call;
use scratch::wait_until;
#[cfg(target_arch = "x86_64")]
use x86_64::set_call;

use crate::api::served::ApiProcess;
use crate::guest::Running;
use crate::guests::{file, program};

/// Exit status after a refused call, as Firecracker's.
const REFUSED: i32 = 148;

/// A system call with its number, name and arguments.
type Attempt = (libc::c_long, &'static str, [u64; 4]);

const IOCTL: libc::c_long = libc::SYS_ioctl;
/// Requests of KVM and tap devices that no running VM makes.
const KVM_CREATE_VM: u64 = 0xae01;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const TUNSETIFF: u64 = 0x4004_54ca;
const EXECUTABLE: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;

/// Calls that each thread of a VM is refused.
const ATTEMPTS: [Attempt; 34] = [
    (libc::SYS_execve, "execve", [0; 4]),
    (libc::SYS_execveat, "execveat", [0; 4]),
    (libc::SYS_ptrace, "ptrace", [libc::PTRACE_ATTACH as u64, 1, 0, 0]),
    (
        libc::SYS_unshare,
        "unshare",
        [libc::CLONE_NEWUSER as u64, 0, 0, 0],
    ),
    (libc::SYS_setns, "setns", [0; 4]),
    (libc::SYS_clone, "clone", [libc::SIGCHLD as u64, 0, 0, 0]),
    (
        libc::SYS_socket,
        "socket",
        [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0],
    ),
    (
        libc::SYS_socket,
        "socket",
        [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0],
    ),
    (libc::SYS_connect, "connect", [0; 4]),
    (libc::SYS_bind, "bind", [0; 4]),
    (libc::SYS_mount, "mount", [0; 4]),
    (libc::SYS_umount2, "umount2", [0; 4]),
    (libc::SYS_pivot_root, "pivot_root", [0; 4]),
    (libc::SYS_chroot, "chroot", [0; 4]),
    (libc::SYS_bpf, "bpf", [0; 4]),
    (libc::SYS_userfaultfd, "userfaultfd", [0; 4]),
    (libc::SYS_perf_event_open, "perf_event_open", [0; 4]),
    (libc::SYS_kill, "kill", [1, 0, 0, 0]),
    (libc::SYS_tgkill, "tgkill", [1, 1, 0, 0]),
    (libc::SYS_process_vm_readv, "process_vm_readv", [1, 0, 0, 0]),
    (libc::SYS_process_vm_writev, "process_vm_writev", [1, 0, 0, 0]),
    (libc::SYS_pidfd_open, "pidfd_open", [1, 0, 0, 0]),
    (libc::SYS_pidfd_getfd, "pidfd_getfd", [0; 4]),
    (libc::SYS_setuid, "setuid", [0; 4]),
    (libc::SYS_keyctl, "keyctl", [0; 4]),
    (libc::SYS_init_module, "init_module", [0; 4]),
    (libc::SYS_open_by_handle_at, "open_by_handle_at", [0; 4]),
    (libc::SYS_io_uring_setup, "io_uring_setup", [1, 0, 0, 0]),
    (libc::SYS_memfd_create, "memfd_create", [0; 4]),
    (libc::SYS_mmap, "mmap", [0, 4096, EXECUTABLE, 0]),
    (libc::SYS_mprotect, "mprotect", [0, 4096, EXECUTABLE, 0]),
    (IOCTL, "ioctl", [0, KVM_CREATE_VM, 0, 0]),
    (IOCTL, "ioctl", [0, KVM_SET_USER_MEMORY_REGION, 0, 0]),
    (IOCTL, "ioctl", [0, TUNSETIFF, 0, 0]),
];

/// A thread of a role, by the begin of its name.
const THREADS: [(&str, &str); 2] = [("mayfly", "vmm"), ("fc_vcpu 0", "vcpu")];

fn start() -> Running {
    let mut command = Command::new(program());
    Running::start(command.args(["run", &file("end-hlt.elf")]))
}

/// Returns the thread of `process` whose name begins with `name`.
fn thread(process: u32, name: &str) -> Option<libc::pid_t> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut ids = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    let id = ids.find(|id| {
        let comm = fs::read_to_string(format!("/proc/{process}/task/{id}/comm"));
        comm.is_ok_and(|comm| comm.starts_with(name))
    })?;
    id.parse().ok()
}

fn is_filtered(process: u32, thread: libc::pid_t) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
    status.contains("\nSeccomp:\t2\n")
}

/// Makes a request to the stopped `thread`. `data` is null, or a structure of the size that the operation accesses.
fn request(operation: libc::c_uint, thread: libc::pid_t, address: usize, data: *mut libc::c_void) {
    let address = ptr::without_provenance_mut::<libc::c_void>(address);
    // SAFETY: the callers pass the `data` that the operation requires.
    let result = unsafe { libc::ptrace(operation, thread, address, data) };
    assert!(result >= 0, "ptrace {operation}: {}", io::Error::last_os_error());
}

/// Makes `thread` call `number`, and continue.
fn inject(thread: libc::pid_t, number: libc::c_long, arguments: [u64; 4]) {
    request(libc::PTRACE_ATTACH, thread, 0, ptr::null_mut());
    let mut status = 0;
    // SAFETY: `status` is valid for writes.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert!(waited == thread && libc::WIFSTOPPED(status));
    set_call(thread, number, arguments);
    request(libc::PTRACE_DETACH, thread, 0, ptr::null_mut());
}

/// Call in which an event loop waits.
#[cfg(target_arch = "x86_64")]
const WAIT: libc::c_long = libc::SYS_epoll_wait;
#[cfg(target_arch = "aarch64")]
const WAIT: libc::c_long = libc::SYS_epoll_pwait;

/// Waits until `thread` waits in the system call `number`: it runs no instruction of its own then.
fn wait_for_call(process: u32, thread: libc::pid_t, number: libc::c_long) {
    let wanted = format!("{number} ");
    wait_until("a system call", || {
        let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).unwrap();
        call.starts_with(&wanted)
    });
}

fn attempt(name: &str, role: &str, (number, call, arguments): Attempt) {
    let mut running = start();
    let process = running.id();
    let mut found = None;
    wait_until("a restricted thread", || {
        found = thread(process, name);
        found.is_some_and(|thread| is_filtered(process, thread))
    });
    let thread = found.unwrap();
    // A vCPU thread waits for its first order, too.
    let waits = if role == "vcpu" { libc::SYS_ioctl } else { WAIT };
    wait_for_call(process, thread, waits);
    inject(thread, number, arguments);
    running.expect_exit(REFUSED);
    let stderr = running.read_stderr();
    let expected = format!("refused the system call {call} of a thread of role {role};");
    assert!(stderr.contains(&expected), "{call} {arguments:x?}: {stderr}");
}

#[test]
fn hostile_event_loop_is_ended() {
    for each in ATTEMPTS {
        attempt(THREADS[0].0, THREADS[0].1, each);
    }
}

#[test]
fn hostile_vcpu_thread_is_ended() {
    let others: [Attempt; 4] = [
        (libc::SYS_openat, "openat", [0; 4]),
        (libc::SYS_unlinkat, "unlinkat", [0; 4]),
        (libc::SYS_renameat2, "renameat2", [0; 4]),
        (libc::SYS_accept4, "accept4", [0; 4]),
    ];
    for each in ATTEMPTS.into_iter().chain(others) {
        attempt(THREADS[1].0, THREADS[1].1, each);
    }
}

#[test]
fn running_vm_has_no_capability_and_no_core() {
    let running = start();
    let process = running.id();
    for (name, _) in THREADS {
        let mut text = String::new();
        wait_until("a restricted thread", || {
            let Some(thread) = thread(process, name) else {
                return false;
            };
            text = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
            text.contains("\nSeccomp:\t2\n")
        });
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(text.contains(line), "{name}: {text}");
        }
    }
}

#[test]
fn options_turn_off_their_part_only() {
    for (option, seccomp, has_capabilities) in [("--no-seccomp", 0, false), ("--keep-capabilities", 2, true)]
    {
        let mut command = Command::new(program());
        let running = Running::start(command.args(["run", &file("end-hlt.elf"), option]));
        let process = running.id();
        let mut text = String::new();
        wait_until("a restricted thread", || {
            text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            text.contains("\nNoNewPrivs:\t1\n") && text.contains(&format!("\nSeccomp:\t{seccomp}\n"))
        });
        let dropped = text.contains("CapEff:\t0000000000000000");
        let can_hold = fs::read_to_string("/proc/self/status").unwrap();
        let can_hold = !can_hold.contains("CapEff:\t0000000000000000");
        assert_eq!(dropped, !(has_capabilities && can_hold), "{option}: {text}");
    }
}

#[test]
fn waiting_process_is_filtered_before_a_request() {
    let process = ApiProcess::start();
    process.connect();
    wait_until("a filter", || {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        status.contains("\nSeccomp:\t2\n")
    });
    let leader = libc::pid_t::try_from(process.id()).unwrap();
    wait_for_call(process.id(), leader, WAIT);
    inject(leader, libc::SYS_execve, [0; 4]);
    let stderr = process.expect_abort(REFUSED);
    assert!(stderr.contains("execve of a thread of role start"), "{stderr}");
}

#[test]
fn api_opens_files_in_allowed_directories_alone() {
    let directory = scratch::Directory::new();
    let allowed = directory.text("");
    let process = ApiProcess::start_with(directory, &["--allow", &allowed]);
    let elsewhere = scratch::Directory::new();
    // Opened before the start; the process may remove it at its end.
    let serial = elsewhere.text("serial");
    process.expect_no_content("PUT", "/serial", &format!(r#"{{"console":"unix:{serial}"}}"#));
    process.set_kernel("end-hlt.elf");
    process.run_action("InstanceStart");
    process.expect_no_content("PATCH", "/vm", crate::api::served::PAUSED);
    let create = |state: &str, memory: &str| {
        let body = format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        process.request("PUT", "/snapshot/create", &body)
    };
    let refused = create(&elsewhere.text("state"), &elsewhere.text("memory"));
    assert_eq!(refused.status(), 400, "{}", refused.text);
    assert!(refused.text.contains("--allow"), "{}", refused.text);
    assert!(!elsewhere.path("state").exists());
    let created = create(
        &process.directory.text("state"),
        &process.directory.text("memory"),
    );
    assert_eq!(created.status(), 204, "{}", created.text);
    assert!(elsewhere.path("serial").exists());
    process.terminate();
    assert!(!elsewhere.path("serial").exists());
}
