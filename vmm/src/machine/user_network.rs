//! Start of a passt, with forwarded ports.

use std::io;
use std::net::{TcpListener, UdpSocket};

use devices::virtio::net::{Passt, Stream, passt};

use crate::config::{Forward, Transport, UserNetwork};

/// Failure to start a passt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be forwarded.
    #[error("cannot forward {} port {} of this host; {}", .0.transport, .0.socket(), advice(.1))]
    Port(Forward, #[source] io::Error),
    /// The process cannot be started.
    #[error(transparent)]
    Passt(passt::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "choose another one, or end the program that uses it",
        io::ErrorKind::PermissionDenied => {
            "choose one that needs no root (sysctl net.ipv4.ip_unprivileged_port_start)"
        }
        _ => "choose another one, or an address of this host",
    }
}

/// Starts the passt of an interface.
///
/// # Errors
/// [`Error::Port`] for a port that is not free; passt would report it only after the start of the guest.
pub fn start(network: &UserNetwork) -> Result<(Passt, Stream), Error> {
    for forward in &network.forwards {
        let socket = forward.socket();
        let bound = match forward.transport {
            Transport::Tcp => TcpListener::bind(socket).map(drop),
            Transport::Udp => UdpSocket::bind(socket).map(drop),
        };
        bound.map_err(|error| Error::Port(*forward, error))?;
    }
    Passt::start(&network.arguments()).map_err(Error::Passt)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::net::{TcpListener, UdpSocket};

    use super::start;
    use crate::config::NetConfig;

    #[test]
    fn port_in_use_is_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (protocol, socket) in [
            ("TCP", tcp.local_addr().unwrap()),
            ("UDP", udp.local_addr().unwrap()),
        ] {
            let option = protocol.to_lowercase();
            let text = format!("user,{option}=127.0.0.1/{}:80", socket.port());
            let config: NetConfig = text.parse().unwrap();
            let error = start(&config.user).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot forward {protocol} port {socket} of this host; choose another one, or end the program that uses it"
                )
            );
            assert!(error.source().unwrap().to_string().contains("in use"));
        }
    }
}
