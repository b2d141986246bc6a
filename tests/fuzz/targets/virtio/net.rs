//! Network device on a stream socket, with and without a rewriter of addresses.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;

use devices::Limiter;
use devices::virtio::net::{AddressMap, HEADER, MAX_FRAME, Net, NetSetup, Stream};

use super::super::board::ManualClock;
use super::super::input::Input;
use super::guest::Guest;
use super::{Model, ONE_PER_100_MS, Scene, buffer};

/// Other end of the stream, and the options of the interface.
pub struct Peer {
    stream: UnixStream,
    is_throttled: bool,
    addresses: Option<AddressMap>,
    /// The peer has sent bytes that are no frame.
    is_damaged: bool,
    received: Vec<u8>,
}

/// Addresses of the guest and of the network.
const ADDRESSES: AddressMap = AddressMap {
    guest_ip: Ipv4Addr::new(10, 0, 0, 2),
    ip: Ipv4Addr::new(10, 0, 7, 1),
    guest_mac: [2, 0, 0, 0, 0, 7],
    mac: [2, 0, 0, 0, 7, 1],
    pass_ipv6: false,
};

/// Address of another host.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 7, 9);
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Returns a frame of `length` bytes, at least 42, that a rewriter passes: an IPv4 packet without a known protocol.
fn ip_frame(length: usize, destination: [u8; 6], source: [u8; 6], ips: [Ipv4Addr; 2]) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &[8, 0, 0x45, 0]].concat();
    frame.extend(
        u16::try_from(length - 14)
            .expect("the length is short")
            .to_be_bytes(),
    );
    frame.extend([0, 0, 0, 0, 64, 200, 0, 0]);
    frame.extend(ips.iter().flat_map(Ipv4Addr::octets));
    frame.resize(length, 0x77);
    frame
}

impl Peer {
    pub fn new(options: u8) -> Self {
        let (stream, _) = UnixStream::pair().expect("cannot create sockets");
        Self {
            stream,
            is_throttled: options & 1 != 0,
            addresses: (options & 2 != 0).then_some(AddressMap {
                pass_ipv6: options & 4 != 0,
                ..ADDRESSES
            }),
            is_damaged: false,
            received: Vec::new(),
        }
    }

    /// Reads all available bytes.
    fn receive(&mut self) {
        match self.stream.read_to_end(&mut self.received) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => {}
            Err(error) => panic!("cannot read the stream: {error}"),
        }
    }

    /// Checks that `frame` has the addresses of the network, if the device has a rewriter.
    fn check_source(&self, frame: &[u8]) {
        let Some(map) = self.addresses else { return };
        assert!(
            frame[6..12] == map.mac,
            "the device sent from another MAC address"
        );
        let source = match frame[12..14] {
            [8, 0] => &frame[26..30],
            [8, 6] => &frame[28..32],
            _ => {
                return assert!(
                    frame[12..14] == [0x86, 0xdd] && map.pass_ipv6,
                    "the device sent another protocol"
                );
            }
        };
        assert!(
            source == map.ip.octets() || source == [0; 4],
            "the device sent from another IP address"
        );
    }

    /// Changes up to three bytes at the start of `bytes`, where the headers are, if the device has a rewriter.
    fn damage(&self, bytes: &mut [u8], input: &mut Input<'_>) {
        let count = self.addresses.map_or(0, |_| input.u8() % 4);
        for _ in 0..count {
            let (at, value) = (usize::from(input.u8()), input.u8());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
    }

    /// Returns a frame of `length` bytes from or to the guest.
    fn frame(&self, length: usize, filler: u8, is_outbound: bool) -> Vec<u8> {
        match self.addresses {
            Some(map) if length >= 42 && is_outbound => {
                ip_frame(length, PEER_MAC, map.guest_mac, [map.guest_ip, PEER])
            }
            Some(map) if length >= 42 => ip_frame(length, map.mac, PEER_MAC, [PEER, map.ip]),
            _ => vec![filler; length],
        }
    }

    /// Checks the received stream: complete frames of a valid length, and at most one incomplete frame at the end. Returns the
    /// last complete frame.
    fn last_frame(&self) -> Option<&[u8]> {
        let (mut rest, mut last) = (self.received.as_slice(), None);
        while let Some((prefix, tail)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*prefix)).expect("the length fits");
            assert!(length <= MAX_FRAME, "the device sent a frame of {length} bytes");
            if length > tail.len() {
                break;
            }
            let (frame, tail) = tail.split_at(length);
            self.check_source(frame);
            (rest, last) = (tail, Some(frame));
        }
        last
    }
}

impl Model for Peer {
    type Device = Net;
    const QUEUES: usize = 2;

    fn create(&mut self, clock: ManualClock) -> Box<Net> {
        let (socket, stream) = UnixStream::pair().expect("cannot create sockets");
        stream.set_nonblocking(true).expect("cannot change the socket");
        self.stream = stream;
        self.received.clear();
        self.is_damaged = false;
        let limit = self.is_throttled.then_some(ONE_PER_100_MS);
        let limiter = || Limiter::new(None, limit).expect("cannot create a timer");
        let net = Net::new(NetSetup {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: None,
            backend: Box::new(Stream::new(socket).expect("cannot use the socket")),
            addresses: self.addresses,
            receive_limiter: limiter(),
            transmit_limiter: limiter(),
            clock: Box::new(clock),
        });
        Box::new(net.expect("cannot create the device"))
    }

    fn apply_event(&mut self, _: &mut Net, input: &mut Input<'_>) {
        self.receive();
        let length = usize::from(input.u16()) % 3000;
        let is_frame = input.u8() != 0xff;
        self.is_damaged |= !is_frame || length < 14;
        let bytes = match is_frame {
            true => {
                let prefix = u32::try_from(length).expect("the length is short").to_be_bytes();
                let mut frame = self.frame(length, 0x5a, false);
                self.damage(&mut frame, input);
                [&prefix[..], &frame].concat()
            }
            false => input.bytes(length % 16).to_vec(),
        };
        // The socket is full if the driver supplies no buffers: then a part of the frame is missing.
        self.is_damaged |= self.stream.write_all(&bytes).is_err();
    }

    fn add_request(&mut self, guest: &mut Guest, input: &mut Input<'_>) {
        let length = usize::from(input.u16()) % 2000 + 1;
        let is_receive = length % 2 == 0;
        let frame = self.frame(length.saturating_sub(HEADER), 0x3c, true);
        let mut data = [&[0; HEADER][..], &frame].concat();
        data.truncate(length);
        self.damage(&mut data, input);
        let address = guest.place(&data);
        let split = u32::from(input.u8()).min(u32::try_from(length).expect("the length is short") - 1);
        let rest = u32::try_from(length).expect("the length is short") - split;
        let mut chain = vec![buffer(address + u64::from(split), rest, is_receive)];
        if split > 0 {
            chain.insert(0, buffer(address, split, is_receive));
        }
        guest.add(usize::from(!is_receive), &chain);
    }

    fn check_recovery(&mut self, scene: &mut Scene<Self>) {
        self.receive();
        scene.clock.advance(std::time::Duration::from_secs(1));
        scene.process_events();
        let packet = [&[0; HEADER][..], &self.frame(60, 0x77, true)].concat();
        let address = scene.guest.place(&packet);
        let length = u32::try_from(packet.len()).expect("the packet is short");
        scene.guest.add(1, &[buffer(address, length, false)]);
        scene.notify(1);
        self.receive();
        scene.process_events();
        assert_eq!(
            scene.guest.driver.queues[1].used_index(),
            1,
            "a packet after a reset is not used"
        );
        self.receive();
        let last = self.last_frame();
        let expected = match self.addresses {
            Some(map) => ip_frame(60, PEER_MAC, map.mac, [map.ip, PEER]),
            None => vec![0x77; 60],
        };
        // The checksum of the header stays as wrong as it is.
        let is_same = |last: &[u8]| last[..24] == expected[..24] && last[26..] == expected[26..];
        let is_sent = last.is_some_and(|last| last.len() == expected.len() && is_same(last));
        assert!(self.is_damaged || is_sent, "a packet after a reset is lost");
    }
}

/// The first byte gives the options of the interface.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let peer = Peer::new(input.u8());
    super::run(peer, &mut input);
}
