use std::error::Error as _;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::thread;

use scratch::Directory;

use super::*;

fn connects(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path)
}

/// A socket at which nobody listens any more.
fn abandon(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

#[test]
fn clients_find_it_under_its_name_and_nothing_else_is_there() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(folder.names(), ["api.sock"]);
    assert_eq!(socket.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let _client = connects(&path).unwrap();
    socket.accept().unwrap();
    drop(socket);
    assert!(folder.names().is_empty());
}

#[test]
fn a_client_that_connects_when_the_path_appears_is_never_refused() {
    const TIMES: usize = 1000;
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let (start, started) = mpsc::channel();
    let (done, finished) = mpsc::channel();
    let client = thread::spawn({
        let path = path.clone();
        move || {
            while started.recv().is_ok() {
                let outcome = loop {
                    match connects(&path) {
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        outcome => break outcome.map(drop),
                    }
                };
                done.send(outcome).unwrap();
            }
        }
    });
    for time in 0..TIMES {
        start.send(()).unwrap();
        let socket = Socket::bind(&path).unwrap();
        let outcome = finished.recv().unwrap();
        assert!(outcome.is_ok(), "the {time}th time: {outcome:?}");
        drop(socket);
    }
    drop(start);
    client.join().unwrap();
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    abandon(&path);
    let socket = Socket::bind(&path).unwrap();
    connects(&path).unwrap();
    assert_eq!(folder.names(), ["api.sock"]);
    drop(socket);
}

#[test]
fn a_live_socket_stays_and_is_not_disturbed() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let first = Socket::bind(&path).unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "Failed to open the API socket at: {}. Check that it is not already used.",
            path.display()
        )
    );
    assert_eq!(first.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(folder.names(), ["api.sock"]);
    let datagrams = folder.path("log.sock");
    let _other = UnixDatagram::bind(&datagrams).unwrap();
    assert!(matches!(Socket::bind(&datagrams), Err(Error::InUse(_))));
}

#[test]
fn only_one_of_many_gets_the_place_of_a_stale_socket() {
    const RIVALS: usize = 4;
    for _ in 0..100 {
        let folder = Directory::new();
        let path = folder.path("api.sock");
        abandon(&path);
        let rivals: Vec<_> = (0..RIVALS)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || Socket::bind(&path))
            })
            .collect();
        let won: Vec<_> = rivals
            .into_iter()
            .filter_map(|rival| rival.join().unwrap().ok())
            .collect();
        let [winner] = &won[..] else {
            panic!("{} have it", won.len());
        };
        let _client = connects(&path).unwrap();
        winner.accept().unwrap();
        assert_eq!(folder.names(), ["api.sock"]);
    }
}

#[test]
fn what_is_no_socket_stays() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(&error, Error::NotSocket(at) if *at == path), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let link = folder.path("link");
    symlink("nowhere", &link).unwrap();
    assert!(matches!(Socket::bind(&link), Err(Error::NotSocket(_))));
    assert!(matches!(Socket::bind(folder.root()), Err(Error::NotSocket(_))));
    assert_eq!(folder.names().len(), 2);
}

/// A path in `folder` whose length is `length`.
fn path_of(folder: &Directory, length: usize) -> PathBuf {
    let room = length - folder.root().as_os_str().len() - 1;
    folder.path(&"s".repeat(room))
}

#[test]
fn a_path_may_be_as_long_as_an_address_takes() {
    let folder = Directory::new();
    let longest = path_of(&folder, MAX_SOCKET_PATH);
    let _socket = Socket::bind(&longest).unwrap();
    connects(&longest).unwrap();
    let error = Socket::bind(&path_of(&folder, MAX_SOCKET_PATH + 1)).unwrap_err();
    assert!(matches!(error, Error::Long { length: 108, .. }), "{error}");
}

#[test]
fn a_short_name_in_a_long_folder_leaves_room_for_another() {
    let folder = Directory::new();
    let long = path_of(&folder, MAX_SOCKET_PATH - 2);
    fs::create_dir(&long).unwrap();
    // Every one of the names that are tried is one letter long, and one of them is the path's own.
    for name in ["s", "0", "8", "f"] {
        let path = long.join(name);
        assert_eq!(path.as_os_str().len(), MAX_SOCKET_PATH);
        assert!(names(&path).all(|other| other != path && other.as_os_str().len() == MAX_SOCKET_PATH));
        let _socket = Socket::bind(&path).unwrap();
        abandon(&long.join("x"));
        connects(&path).unwrap();
        fs::remove_file(long.join("x")).unwrap();
    }
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
}

#[test]
fn names_that_are_taken_are_passed_by() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let taken: Vec<_> = names(&path).take(3).collect();
    for name in &taken {
        abandon(name);
    }
    let _socket = Socket::bind(&path).unwrap();
    connects(&path).unwrap();
    assert!(taken.iter().all(|name| name.exists()));
    assert_eq!(folder.names().len(), 4);
}

#[test]
fn errors_name_the_path_and_the_way_out() {
    let folder = Directory::new();
    let path = folder.path("no/api.sock");
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, Error::NoFolder(_)), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()));

    let denied = Error::at(&path, "create it", io::Error::from_raw_os_error(libc::EACCES));
    assert!(denied.source().is_some());
    let text = denied.to_string();
    assert!(
        text.contains("no permission to create it; let this user write"),
        "{text}"
    );
    let full = Error::at(&path, "create it", io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(matches!(full, Error::System { .. }));

    fs::set_permissions(folder.root(), PermissionsExt::from_mode(0o555)).unwrap();
    let probe = fs::write(folder.path("probe"), "");
    // Permissions do not bind root.
    if probe.is_err() {
        let error = Socket::bind(&folder.path("api.sock")).unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    }
}

#[test]
fn a_file_that_is_anothers_by_now_stays() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let first = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Socket::bind(&path).unwrap();
    drop(first);
    let mut client = connects(&path).unwrap();
    drop(second.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn without_links_a_rename_takes_nobodys_place() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let hidden = folder.path("hidden");
    let _listener = UnixListener::bind(&hidden).unwrap();
    rename(&hidden, &path).unwrap();
    connects(&path).unwrap();
    assert_eq!(folder.names(), ["api.sock"]);
    abandon(&hidden);
    let error = rename(&hidden, &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    connects(&path).unwrap();
}

#[test]
fn a_lock_that_is_never_given_back_holds_up_nobody_for_good() {
    let folder = Directory::new();
    let path = folder.path("api.sock");
    let _held = lock(&path).unwrap();
    assert!(lock(&path).is_none());
    abandon(&path);
    let _socket = Socket::bind(&path).unwrap();
}
