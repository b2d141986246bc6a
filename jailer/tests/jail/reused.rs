//! A second start with the same ID.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use scratch::KillDaemon;

use crate::fixture::{in_namespaces, tree};

#[test]
fn second_start_says_that_jail_is_in_use() {
    in_namespaces(|host| {
        let jailed = host.start("vm1", &[]);
        let before = tree(&host.base);
        // A hostile VMM may remove files of its jail.
        for name in ["dev/kvm", "dev/net/tun", "dev/urandom", "mayfly.pid"] {
            let expected = format!("process {} runs in it; choose another --id", jailed.pid());
            for options in [&[][..], &["--force"]] {
                let text = host.fail(&mut host.command("vm1", options));
                assert!(text.contains(&expected), "{text}");
            }
            fs::remove_file(jailed.root.join(name)).unwrap();
        }
        assert_eq!(tree(&host.base).len(), before.len() - 4);
        drop(host.start("vm2", &[]));
    });
}

#[test]
fn jail_of_ended_vmm_needs_force() {
    in_namespaces(|host| {
        for options in [&[][..], &["--daemonize"], &["--new-pid-ns"]] {
            let _ = fs::remove_dir_all(host.base.join("mayfly"));
            let pid = if options.is_empty() {
                host.start("vm1", &[]).pid()
            } else {
                host.start_in_background("vm1", options).0
            };
            scratch::wait_until("the end of the VMM", || !has_threads(pid));
            // The kernel closes it last. The next start would take it for that of the new VMM.
            let socket = host.root("vm1").join("run/api.sock");
            scratch::wait_until("the end of its socket", || UnixStream::connect(&socket).is_err());
            fs::write(host.root("vm1").join("kernel"), "of the user").unwrap();
            let before = tree(&host.base);
            let text = host.fail(&mut host.command("vm1", options));
            assert!(
                text.contains(&format!("of an earlier VMM, process {pid}, which has ended")),
                "{text}"
            );
            assert!(text.contains("add --force"), "{text}");
            assert_eq!(tree(&host.base), before);
            let jailed = host.start("vm1", &["--force"]);
            assert_ne!(jailed.pid(), pid);
            assert_eq!(
                fs::read_to_string(jailed.root.join("kernel")).unwrap(),
                "of the user"
            );
            assert_eq!(tree(&host.base).len(), before.len());
        }
    });
}

/// Returns true if a thread of the process runs. The first thread of a killed process may end before others.
fn has_threads(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.any(|task| fs::metadata(task.path().join("root/")).is_ok())
}

/// A process without its first thread.
const HEADLESS: &str = "
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
static void *wait(void *unused) { for (;;) pause(); return unused; }
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, wait, NULL);
    syscall(SYS_exit, 0);
}
";

#[test]
fn process_without_first_thread_is_found() {
    in_namespaces(|host| {
        let scratch = scratch::Directory::new();
        scratch.write("headless.c", HEADLESS);
        let mut compiler = Command::new("cc");
        compiler
            .args(["-static", "-pthread", "-o", "mayfly", "headless.c"])
            .current_dir(scratch.root());
        assert!(scratch::run(&mut compiler).status.success(), "cannot compile");
        let program = scratch.path("mayfly");
        let child = host.command_for(&program, "vm1", &[]).spawn().unwrap();
        let child = scratch::KillOnDrop(child);
        let pid = child.0.id();
        scratch::wait_until("the end of the first thread", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        });
        assert!(has_threads(pid));
        let text = host.fail(&mut host.command_for(&program, "vm1", &["--force"]));
        assert!(text.contains(&format!("process {pid} runs in it")), "{text}");
    });
}

#[test]
fn jail_that_another_jailer_prepares_is_in_use() {
    in_namespaces(|host| {
        let id = host.base.join("mayfly/vm1");
        fs::create_dir_all(&id).unwrap();
        let lock = File::open(&id).unwrap();
        lock.lock().unwrap();
        let text = host.fail(&mut host.command("vm1", &["--force"]));
        assert!(text.contains("another jailer starts a VMM in it"), "{text}");
        assert!(id.exists());
        // Not by closing it: a child of another test may hold a copy until its exec.
        lock.unlock().unwrap();
        drop(host.start("vm1", &[]));
    });
}

/// The user of the VMM owns the root of the jail: links in there lead the jailer, which is root, nowhere.
#[test]
fn links_in_jail_are_not_followed() {
    in_namespaces(|host| {
        let outside = scratch::Directory::new();
        outside.write("file", "safe");
        let root = host.root("vm1");
        for (name, text) in [
            ("mayfly", "cannot replace"),
            ("dev", "cannot open the directory"),
            ("run", "cannot open the directory"),
        ] {
            let _ = fs::remove_dir_all(host.base.join("mayfly"));
            fs::create_dir_all(&root).unwrap();
            let target = if name == "mayfly" {
                outside.path("file")
            } else {
                outside.root().to_owned()
            };
            symlink(target, root.join(name)).unwrap();
            let message = host.fail(&mut host.command("vm1", &["--force"]));
            assert!(message.contains(text), "{name}: {message}");
            assert_eq!(outside.names(), ["file"]);
        }
        // A second name of a file outside.
        fs::remove_dir_all(host.base.join("mayfly")).unwrap();
        fs::create_dir_all(&root).unwrap();
        fs::write(host.base.join("outside"), "safe").unwrap();
        fs::hard_link(host.base.join("outside"), root.join("mayfly")).unwrap();
        let message = host.fail(&mut host.command("vm1", &[]));
        assert!(message.contains("another name"), "{message}");
        assert_eq!(fs::read_to_string(host.base.join("outside")).unwrap(), "safe");
    });
}

/// A jailer that fails removes the directories that it has created, unless another one uses them by then.
#[test]
fn failing_jailers_do_not_disturb_others() {
    const PAIRS: usize = 12;
    in_namespaces(|host| {
        for round in 0..4 {
            let ids: Vec<String> = (0..PAIRS).map(|index| format!("vm-{round}-{index}")).collect();
            let start = |id: &String, options: &[&str]| {
                let mut command = host.command(id, options);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().unwrap()
            };
            let children: Vec<_> = ids
                .iter()
                .map(|id| {
                    let failing = start(&format!("{id}-fails"), &["--netns", "/dev/null"]);
                    (failing, start(id, &["--daemonize"]))
                })
                .collect();
            for (id, (mut failing, mut other)) in ids.iter().zip(children) {
                assert_eq!(scratch::wait_exit(&mut failing).code(), Some(1));
                assert!(scratch::wait_exit(&mut other).success(), "{id}");
                drop(KillDaemon(host.pid(id)));
            }
            let mut names: Vec<_> = fs::read_dir(host.base.join("mayfly"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            let mut expected = ids;
            expected.sort();
            assert_eq!(names, expected);
            fs::remove_dir_all(host.base.join("mayfly")).unwrap();
        }
    });
}
