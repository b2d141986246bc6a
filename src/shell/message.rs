//! Messages between a shell and its client, on a stream socket. Each is a line of JSON, followed by a line feed.
//!
//! The client sends one request, with file descriptors (`SCM_RIGHTS`) in this order: stdin, stdout, stderr, working directory, then those
//! of `files` and of `descriptors`.
//!
//! ```text
//! {"arguments":["DIR","--net","eth0=fd:5"],"files":["DIR/state","DIR/memory"],"descriptors":[5]}
//! ```
//! `arguments` are those of `mayfly restore`. `files` are paths as the arguments or the state file have them, `descriptors` numbers in
//! `--net ID=fd:NUMBER` and `--first-frames ID=NUMBER`; the shell opens other files itself. The client opens each file for this request and closes it afterwards: the lock
//! of a disk belongs to the open file. The shell replies with one of
//!
//! ```text
//! {"refused":"cannot ..."}    the shell is unchanged, and waits for another request
//! {"status":0}                exit status, at the end of the VM
//! {"signal":15}               signal that has ended the VM
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Maximum length of a message in bytes.
const MAX_LENGTH: usize = 64 << 10;

/// Maximum number of descriptors, as the kernel's limit of one message (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;

/// Number of descriptors before those of the files.
const FIXED: usize = 4;

/// Failure to send or to receive a message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} the message")]
    Socket {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The connection ended before the message.
    #[error("the connection ended without a complete message")]
    Ended,
    /// The message is too long.
    #[error(
        "the message has more than {MAX_LENGTH} bytes or {MAX_DESCRIPTORS} descriptors; shorten the arguments"
    )]
    Long,
    /// The message is not in the format.
    #[error("cannot read the message: {0}")]
    Format(&'static str),
}

/// Request to load a snapshot.
#[derive(Debug)]
pub struct Request<D = OwnedFd> {
    /// Arguments of `mayfly restore`.
    pub arguments: Vec<String>,
    /// stdin, stdout and stderr of the VM.
    pub standard: [D; 3],
    /// Working directory.
    pub directory: D,
    /// Open files by their paths.
    pub files: Vec<(PathBuf, D)>,
    /// Open descriptors by their numbers in the arguments.
    pub descriptors: Vec<(RawFd, D)>,
    /// The VM goes on when its client ends.
    pub is_detached: bool,
}

impl<D: AsRawFd> Request<D> {
    /// Sends the request.
    ///
    /// # Errors
    /// [`Error::Long`], [`Error::Format`] if a path is not UTF-8, and [`Error::Socket`].
    pub fn send(&self, stream: &mut UnixStream) -> Result<(), Error> {
        let files = self.files.iter().map(|(path, _)| path.to_str());
        let files: Option<Vec<_>> = files.collect();
        let files = files.ok_or(Error::Format("a path is not UTF-8"))?;
        let numbers: Vec<_> = self.descriptors.iter().map(|(number, _)| number).collect();
        let text = json!({
            "arguments": self.arguments,
            "files": files,
            "descriptors": numbers,
            "detached": self.is_detached,
        });
        let text = format!("{text}\n");
        let standard = self.standard.iter().chain([&self.directory]);
        let files = self.files.iter().map(|(_, file)| file);
        let descriptors = self.descriptors.iter().map(|(_, descriptor)| descriptor);
        let all = standard.chain(files).chain(descriptors);
        let all: Vec<_> = all.map(AsRawFd::as_raw_fd).collect();
        if text.len() > MAX_LENGTH || all.len() > MAX_DESCRIPTORS {
            return Err(Error::Long);
        }
        let failed = |source| Error::Socket {
            operation: "send",
            source,
        };
        let bytes = text.as_bytes();
        let sent = stream.send_with_fds(&[bytes], &all);
        let sent = sent.map_err(|error| failed(error.into()))?;
        // The descriptors arrive with the first byte.
        stream.write_all(&bytes[sent..]).map_err(failed)
    }
}

impl Request {
    /// Receives a request until `deadline`, which also limits the reply to it. Calls `arrived` before it parses the request.
    ///
    /// # Errors
    /// [`Error`]
    pub fn receive(
        stream: &mut UnixStream,
        deadline: Instant,
        arrived: impl FnOnce(),
    ) -> Result<Self, Error> {
        let (text, descriptors) = receive_line(stream, Some(deadline))?;
        arrived();
        Self::parse(&text, descriptors)
    }

    fn parse(text: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, Error> {
        let message: Value = serde_json::from_slice(text).map_err(|_| Error::Format("it is not JSON"))?;
        let strings = |key: &str| -> Option<Vec<String>> {
            let values = message.get(key)?.as_array()?.iter();
            values.map(|value| Some(value.as_str()?.to_owned())).collect()
        };
        let invalid = || Error::Format("arguments and files must be arrays of strings");
        let arguments = strings("arguments").ok_or_else(invalid)?;
        let files = strings("files").ok_or_else(invalid)?;
        let numbers = message.get("descriptors").and_then(|value| {
            let values = value.as_array()?.iter();
            let number = |value: &Value| RawFd::try_from(value.as_i64()?).ok();
            values.map(number).collect::<Option<Vec<_>>>()
        });
        let numbers = numbers.ok_or(Error::Format("descriptors must be an array of numbers"))?;
        if descriptors.len() != FIXED + files.len() + numbers.len() {
            return Err(Error::Format(
                "it has another number of descriptors than names, and stdin, stdout, stderr and working directory",
            ));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Error::Format("a descriptor is missing"));
        let standard = [next()?, next()?, next()?];
        let directory = next()?;
        let mut with_names = files.into_iter().map(|path| Ok((PathBuf::from(path), next()?)));
        let files = with_names.by_ref().collect::<Result<_, _>>()?;
        drop(with_names);
        let descriptors = numbers.into_iter().zip(descriptors).collect();
        Ok(Self {
            arguments,
            standard,
            directory,
            files,
            descriptors,
            is_detached: message.get("detached") == Some(&Value::Bool(true)),
        })
    }
}

/// Reply of a shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The shell cannot load the snapshot, and is unchanged.
    Refused(String),
    /// The VM has ended with this exit status.
    Status(u8),
    /// This signal has ended the VM.
    Signal(libc::c_int),
}

impl Reply {
    /// Sends the reply.
    ///
    /// # Errors
    /// Fails if the client has ended.
    pub fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let text = match self {
            Self::Refused(reason) => json!({ "refused": reason }),
            Self::Status(status) => json!({ "status": status }),
            Self::Signal(signal) => json!({ "signal": signal }),
        };
        stream.write_all(format!("{text}\n").as_bytes())
    }

    /// Receives a reply.
    ///
    /// # Errors
    /// [`Error`]
    pub fn receive(stream: &mut UnixStream) -> Result<Self, Error> {
        let (text, _) = receive_line(stream, None)?;
        let message: Value = serde_json::from_slice(&text).map_err(|_| Error::Format("it is not JSON"))?;
        let number = |key: &str| message.get(key).and_then(Value::as_u64);
        let reply = match (message.get("refused"), number("status"), number("signal")) {
            (Some(Value::String(reason)), _, _) => Some(Self::Refused(reason.clone())),
            (None, Some(status), _) => u8::try_from(status).ok().map(Self::Status),
            (None, None, Some(signal)) => libc::c_int::try_from(signal)
                .ok()
                .filter(|signal| (1..=64).contains(signal))
                .map(Self::Signal),
            _ => None,
        };
        reply.ok_or(Error::Format("it has neither reason, status nor signal"))
    }
}

/// Receives a line until `deadline`, if there is one, and the descriptors that arrive with its first bytes.
fn receive_line(
    stream: &mut UnixStream,
    deadline: Option<Instant>,
) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    let failed = |source| Error::Socket {
        operation: "receive",
        source,
    };
    limit(stream, deadline).map_err(failed)?;
    let mut text = vec![0; MAX_LENGTH];
    let (mut length, descriptors) = receive_first(stream, &mut text).map_err(failed)?;
    while !text[..length].ends_with(b"\n") {
        if length == text.len() {
            return Err(Error::Long);
        }
        limit(stream, deadline).map_err(failed)?;
        match stream.read(&mut text[length..]) {
            Ok(0) => return Err(Error::Ended),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    text.truncate(length);
    Ok((text, descriptors))
}

/// Limits the next read and write of `stream`.
///
/// # Errors
/// Fails after the deadline.
fn limit(stream: &UnixStream, deadline: Option<Instant>) -> io::Result<()> {
    let Some(deadline) = deadline else { return Ok(()) };
    let rest = deadline.saturating_duration_since(Instant::now());
    if rest.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(rest))?;
    stream.set_write_timeout(Some(rest))
}

/// Receives bytes, and the descriptors with them.
fn receive_first(stream: &UnixStream, text: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iovecs = [libc::iovec {
        iov_base: text.as_mut_ptr().cast(),
        iov_len: text.len(),
    }];
    let mut numbers = [-1; MAX_DESCRIPTORS];
    // SAFETY: the one iovec describes `text`, which is borrowed for writes during the call.
    let received = unsafe { stream.recv_with_fds(&mut iovecs, &mut numbers) };
    let (length, count) = received.map_err(io::Error::from)?;
    let numbers = numbers.into_iter().take(count);
    // SAFETY: the kernel has just created the descriptors; nothing else owns them.
    let descriptors = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let descriptors: Vec<_> = descriptors.collect();
    for descriptor in &descriptors {
        // A child process, such as passt, must not inherit them.
        // SAFETY: the call takes no pointer.
        unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok((length, descriptors))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::{Error, MAX_LENGTH, Reply, Request};

    fn later() -> Instant {
        Instant::now() + scratch::TIMEOUT
    }

    fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn request(arguments: &[&str]) -> Request {
        Request {
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            standard: [descriptor(), descriptor(), descriptor()],
            directory: descriptor(),
            files: vec![
                ("/s/state".into(), descriptor()),
                ("/s/memory".into(), descriptor()),
            ],
            descriptors: vec![(7, descriptor())],
            is_detached: true,
        }
    }

    #[test]
    fn request_round_trip_keeps_names_and_descriptors() {
        let (mut client, mut shell) = UnixStream::pair().unwrap();
        let long = "x".repeat(MAX_LENGTH / 2);
        request(&["DIR", &long, "--net", "a=fd:7"])
            .send(&mut client)
            .unwrap();
        let received = Request::receive(&mut shell, later(), || ()).unwrap();
        assert_eq!(received.arguments, ["DIR", long.as_str(), "--net", "a=fd:7"]);
        let paths: Vec<_> = received
            .files
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["/s/state", "/s/memory"]);
        assert_eq!(received.descriptors[0].0, 7);
    }

    #[test]
    fn reply_round_trip_is_equal() {
        let (mut client, mut shell) = UnixStream::pair().unwrap();
        for reply in [
            Reply::Refused("cannot \"x\"\n".into()),
            Reply::Status(255),
            Reply::Signal(15),
        ] {
            reply.send(&mut shell).unwrap();
            assert_eq!(Reply::receive(&mut client).unwrap(), reply);
        }
    }

    #[test]
    fn invalid_messages_are_refused() {
        for (text, expected) in [
            ("", "ended without"),
            ("{\"arguments\":[]", "ended without"),
            ("x\n", "not JSON"),
            ("[]\n", "arrays of strings"),
            ("{\"arguments\":[1],\"files\":[]}\n", "arrays of strings"),
            (
                "{\"arguments\":[],\"files\":[],\"descriptors\":[\"1\"]}\n",
                "array of numbers",
            ),
            (
                "{\"arguments\":[],\"files\":[],\"descriptors\":[]}\n",
                "another number of descriptors",
            ),
        ] {
            let (mut client, mut shell) = UnixStream::pair().unwrap();
            client.write_all(text.as_bytes()).unwrap();
            drop(client);
            let error = Request::receive(&mut shell, later(), || ())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn late_request_is_not_awaited() {
        let (mut client, mut shell) = UnixStream::pair().unwrap();
        client.write_all(b"{").unwrap();
        let deadline = Instant::now() + Duration::from_millis(1);
        let received = Request::receive(&mut shell, deadline, || ());
        assert!(matches!(received, Err(Error::Socket { .. })), "{received:?}");
    }

    #[test]
    fn long_request_is_refused_by_both_sides() {
        let (mut client, mut shell) = UnixStream::pair().unwrap();
        let long = "x".repeat(MAX_LENGTH);
        let sent = request(&[&long]).send(&mut client);
        assert!(matches!(sent, Err(Error::Long)));
        let writer = std::thread::spawn(move || client.write_all(long.as_bytes()));
        let received = Request::receive(&mut shell, later(), || ());
        assert!(matches!(received, Err(Error::Long)), "{received:?}");
        drop(shell);
        let _ = scratch::join(writer);
    }
}
