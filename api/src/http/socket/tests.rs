use std::error::Error as _;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;
use std::thread;

use scratch::Directory;

use super::*;

fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path)
}

/// Creates a socket without a listener.
fn create_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

#[test]
fn bind_creates_only_its_path() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(directory.names(), ["api.sock"]);
    assert_eq!(socket.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let _client = connect(&path).unwrap();
    socket.accept().unwrap();
    drop(socket);
    assert!(directory.names().is_empty());
}

#[test]
fn path_accepts_connections_at_once() {
    const TIMES: usize = 1000;
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let (start, started) = mpsc::channel();
    let (done, finished) = mpsc::channel();
    let client = thread::spawn({
        let path = path.clone();
        move || {
            while started.recv_timeout(scratch::TIMEOUT).is_ok() {
                let result = scratch::wait_for("the socket", || match connect(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    result => Some(result.map(drop)),
                });
                done.send(result).unwrap();
            }
        }
    });
    for time in 0..TIMES {
        start.send(()).unwrap();
        let socket = Socket::bind(&path).unwrap();
        let result = scratch::receive(&finished);
        assert!(result.is_ok(), "the {time}th time: {result:?}");
        drop(socket);
    }
    drop(start);
    scratch::join(client);
}

#[test]
fn stale_socket_is_replaced() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    create_stale(&path);
    let socket = Socket::bind(&path).unwrap();
    connect(&path).unwrap();
    assert_eq!(directory.names(), ["api.sock"]);
    drop(socket);
}

#[test]
fn live_socket_is_kept() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let first = Socket::bind(&path).unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "Failed to open the API socket at: {}. Check that it is not already used. It belongs to process {} ({}); end it or \
             choose another path",
            path.display(),
            std::process::id(),
            std::fs::read_to_string("/proc/self/comm").unwrap().trim_end()
        )
    );
    // The search for the process leaves a client that has disconnected.
    assert_eq!(first.accept().unwrap().read(&mut [0]).unwrap(), 0);
    assert_eq!(first.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(directory.names(), ["api.sock"]);
    let datagrams = directory.path("log.sock");
    let _other = UnixDatagram::bind(&datagrams).unwrap();
    assert!(matches!(
        Socket::bind(&datagrams),
        Err(Error::InUse { holder: None, .. })
    ));
}

#[test]
fn stale_socket_is_replaced_once() {
    const SERVERS: usize = 4;
    for _ in 0..100 {
        let directory = Directory::new();
        let path = directory.path("api.sock");
        create_stale(&path);
        let servers: Vec<_> = (0..SERVERS)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || Socket::bind(&path))
            })
            .collect();
        let won: Vec<_> = servers
            .into_iter()
            .filter_map(|server| scratch::join(server).ok())
            .collect();
        let [winner] = &won[..] else {
            panic!("{} servers listen", won.len());
        };
        let _client = connect(&path).unwrap();
        winner.accept().unwrap();
        assert_eq!(directory.names(), ["api.sock"]);
    }
}

#[test]
fn other_file_is_kept() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(&error, Error::NotSocket(at) if *at == path), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let link = directory.path("link");
    symlink("nowhere", &link).unwrap();
    assert!(matches!(Socket::bind(&link), Err(Error::NotSocket(_))));
    assert!(matches!(Socket::bind(directory.root()), Err(Error::NotSocket(_))));
    assert_eq!(directory.names().len(), 2);
}

/// Returns a path in `directory` with this length.
fn path_of(directory: &Directory, length: usize) -> PathBuf {
    let room = length - directory.root().as_os_str().len() - 1;
    directory.path(&"s".repeat(room))
}

#[test]
fn path_length_is_limited() {
    let directory = Directory::new();
    let longest = path_of(&directory, MAX_SOCKET_PATH);
    let _socket = Socket::bind(&longest).unwrap();
    connect(&longest).unwrap();
    let error = Socket::bind(&path_of(&directory, MAX_SOCKET_PATH + 1)).unwrap_err();
    assert!(matches!(error, Error::Long { length: 108, .. }), "{error}");
}

#[test]
fn temporary_name_fits_long_directory() {
    let directory = Directory::new();
    let long = path_of(&directory, MAX_SOCKET_PATH - 2);
    fs::create_dir(&long).unwrap();
    // All temporary names are one letter long, and one of them is the name of the path.
    for name in ["s", "0", "8", "f"] {
        let path = long.join(name);
        assert_eq!(path.as_os_str().len(), MAX_SOCKET_PATH);
        assert!(names(&path).all(|other| other != path && other.as_os_str().len() == MAX_SOCKET_PATH));
        let _socket = Socket::bind(&path).unwrap();
        create_stale(&long.join("x"));
        connect(&path).unwrap();
        fs::remove_file(long.join("x")).unwrap();
    }
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
}

#[test]
fn occupied_temporary_names_are_skipped() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let taken: Vec<_> = names(&path).take(3).collect();
    for name in &taken {
        create_stale(name);
    }
    let _socket = Socket::bind(&path).unwrap();
    connect(&path).unwrap();
    assert!(taken.iter().all(|name| name.exists()));
    assert_eq!(directory.names().len(), 4);
}

#[test]
fn errors_name_path_and_remedy() {
    let directory = Directory::new();
    let path = directory.path("no/api.sock");
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, Error::NoDirectory(_)), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()));

    let denied = Error::at(&path, "create", io::Error::from_raw_os_error(libc::EACCES));
    assert!(denied.source().is_some());
    let text = denied.to_string();
    assert!(text.contains("cannot create the socket"), "{text}");
    let full = Error::at(&path, "create", io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(matches!(full, Error::System { .. }));

    fs::set_permissions(directory.root(), PermissionsExt::from_mode(0o555)).unwrap();
    scratch::bound_by_permissions(|| {
        let error = Socket::bind(&directory.path("api.sock")).unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    });
}

#[test]
fn drop_keeps_replaced_file() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let first = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Socket::bind(&path).unwrap();
    drop(first);
    let mut client = connect(&path).unwrap();
    drop(second.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn rename_keeps_existing_file() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let hidden = directory.path("hidden");
    let _listener = UnixListener::bind(&hidden).unwrap();
    rename(&hidden, &path).unwrap();
    connect(&path).unwrap();
    assert_eq!(directory.names(), ["api.sock"]);
    create_stale(&hidden);
    let error = rename(&hidden, &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    connect(&path).unwrap();
}

#[test]
fn held_lock_does_not_block() {
    let directory = Directory::new();
    let path = directory.path("api.sock");
    let _held = lock(&path).unwrap();
    assert!(lock(&path).is_none());
    create_stale(&path);
    let _socket = Socket::bind(&path).unwrap();
}
