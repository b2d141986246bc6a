//! Tests of attaching to taps. They require root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use super::tap::{in_own_network, ip, tap};
use crate::virtio::net::tap::Error;
use crate::virtio::net::{Backend, Tap};

#[test]
fn tap_opens_from_descriptor() {
    in_own_network(|| {
        let first = tap("mayfly0");
        assert!(first.index().is_some());
        let descriptor = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let tap = Tap::from_descriptor(descriptor).unwrap();
        assert_eq!((tap.name(), tap.index()), ("mayfly0", None));

        let no_tap = OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(matches!(
            Tap::from_descriptor(no_tap).unwrap_err(),
            Error::Descriptor { .. }
        ));
        let unattached = OwnedFd::from(File::open("/dev/net/tun").unwrap());
        assert!(matches!(
            Tap::from_descriptor(unattached).unwrap_err(),
            Error::Descriptor { .. }
        ));
    });
}

#[test]
fn empty_name_creates_tap() {
    in_own_network(|| {
        let tap = Tap::open("").unwrap();
        assert_eq!((tap.name(), tap.describe().as_str()), ("tap0", "tap tap0"));
        assert!(tap.index().is_some());
        without_privileges(|| {
            let denied = Tap::open("").unwrap_err();
            assert!(
                denied.to_string().contains("which requires CAP_NET_ADMIN"),
                "{denied}"
            );
        });
    });
}

#[test]
fn multi_queue_interface_is_rejected() {
    in_own_network(|| {
        ip("tuntap add mayfly0 mode tap multi_queue");
        ip("tuntap add mayfly1 mode tap multi_queue user 65533");
        for name in ["mayfly0", "mayfly1"] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(error, Error::Queues { .. }), "{error:?}");
            let commands =
                format!("ip tuntap del {name} mode tap multi_queue; ip tuntap add {name} mode tap");
            assert!(error.to_string().contains(&commands), "{error}");
        }
    });
}

#[test]
fn missing_interface_is_not_created() {
    in_own_network(|| {
        let missing = Tap::open("mayfly9").unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }), "{missing:?}");
        assert!(
            missing
                .to_string()
                .contains("`ip tuntap add mayfly9 mode tap user $USER`")
        );
        let shown = scratch::run(Command::new("ip").args(["link", "show", "mayfly9"]));
        assert!(!shown.status.success(), "the interface exists now");
    });
}

#[test]
fn open_error_names_cause() {
    in_own_network(|| {
        let _first = tap("mayfly0");
        let busy = Tap::open("mayfly0").unwrap_err();
        assert!(matches!(busy, Error::Busy { .. }), "{busy:?}");
        assert!(
            busy.to_string()
                .contains("cannot open tap interface mayfly0: another process uses it")
        );
        ip("tuntap add mayfly3 mode tun");
        for name in ["lo", "mayfly3"] {
            let other = Tap::open(name).unwrap_err();
            assert!(matches!(other, Error::NotTap { .. }), "{other:?}");
        }
        for name in ["sixteen-letters-", "a/b", "a b", "tap%d", "a:b", ".."] {
            assert!(matches!(Tap::open(name).unwrap_err(), Error::Name(_)), "{name}");
        }
        ip("tuntap add mayfly1 mode tap user 0");
        ip("tuntap add mayfly2 mode tap user 65533");
        without_privileges(|| {
            let missing = Tap::open("mayfly9").unwrap_err();
            assert!(matches!(missing, Error::Missing { .. }), "{missing:?}");
            let denied = Tap::open("mayfly2").unwrap_err();
            assert!(matches!(denied, Error::Denied { .. }), "{denied:?}");
            assert!(Tap::open("mayfly1").is_ok());
        });
    });
}

#[test]
fn device_error_names_commands() {
    let error = |code| Error::from_open(io::Error::from_raw_os_error(code));
    assert!(error(libc::ENOENT).to_string().contains("modprobe tun"));
    assert!(error(libc::EACCES).to_string().contains("chmod 666 /dev/net/tun"));
    assert!(matches!(error(libc::EMFILE), Error::Device(_)));
}

/// Runs `test` without the privileges of root, which this thread cannot regain.
fn without_privileges(test: impl FnOnce()) {
    // Version 3 of the call, for this thread, and an empty set for each of the three sets of 64 bits.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: the call reads the header and six words, which both outlive it, and changes only this thread.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    test();
}
