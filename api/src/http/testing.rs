//! What the tests of this module share.

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Handler, Request, Response};

/// Answers a path with itself, `/none` with nothing and `/big` with much; counts.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) asked: usize,
}

/// Length of the answer to `/big`.
pub(crate) const BIG: usize = 3_000_000;

impl Handler for Echo {
    fn answer(&mut self, request: &Request) -> Response {
        self.asked += 1;
        match request.path.as_str() {
            "/none" => Response::no_content(),
            "/big" => Response::text("text/plain", vec![b'x'; BIG]),
            path => Response::json(200, format!("\"{path} {}\"", request.body.len())),
        }
    }
}

/// What [`Echo`] answers `path` with.
pub(crate) fn echo(path: &str, body: usize) -> String {
    let text = format!("\"{path} {body}\"");
    format!(
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

/// An event loop around one descriptor.
pub(crate) struct Loop(Epoll);

impl Loop {
    pub(crate) fn around(file: &impl AsRawFd) -> Self {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event).unwrap();
        Self(epoll)
    }

    /// Waits until there is work.
    pub(crate) fn wait(&self) {
        while self.0.wait(-1, &mut [EpollEvent::default()]).unwrap_or(0) == 0 {}
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.0.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
    }
}
