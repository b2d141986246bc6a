//! Fixtures for the tests of this module.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Handler, Reply, Request, Response};

/// Handler that counts requests: `/none` has no content, `/big` a long body, others their path. `/switch` takes the connection. `/begin`
/// is pending; other requests than those for `/now` wait meanwhile.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) requests: usize,
    pub(crate) is_busy: bool,
    pub(crate) cancelled: usize,
    /// Connection after the request for `/switch`.
    pub(crate) taken: Option<UnixStream>,
}

/// Length of the response to `/big`.
pub(crate) const BIG: usize = 3_000_000;

impl Handler for Echo {
    fn handle(&mut self, request: &Request) -> Reply {
        if self.is_busy && request.path != "/now" {
            return Reply::Busy;
        }
        self.requests += 1;
        Reply::Response(match request.path.as_str() {
            "/begin" => {
                self.is_busy = true;
                return Reply::Pending;
            }
            "/none" => Response::no_content(),
            "/switch" => Response::switch_to("echo"),
            "/big" => Response::text("text/plain", vec![b'x'; BIG]),
            path => Response::json(200, format!("\"{path} {}\"", request.body.len())),
        })
    }

    fn cancel(&mut self) {
        self.cancelled += 1;
    }

    fn take_over(&mut self, request: &Request, stream: UnixStream) {
        assert_eq!(request.path, "/switch");
        self.taken = Some(stream);
    }
}

/// Bytes of the response of [`Echo`] to `path`.
pub(crate) fn echo(path: &str, body: usize) -> String {
    let text = format!("\"{path} {body}\"");
    format!(
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

/// Event loop with one descriptor.
pub(crate) struct Loop(Epoll);

impl Loop {
    pub(crate) fn around(file: &impl AsRawFd) -> Self {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event).unwrap();
        Self(epoll)
    }

    /// Waits until the descriptor is readable.
    pub(crate) fn wait(&self) {
        scratch::wait_until("a readable descriptor", || self.is_ready());
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.0.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
    }
}
