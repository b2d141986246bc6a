//! Network device on a stream socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use devices::Limiter;
use devices::virtio::net::{HEADER, MAX_FRAME, Net, NetSetup, Stream};

use super::super::board::ManualClock;
use super::super::input::Input;
use super::guest::Guest;
use super::{Model, ONE_PER_100_MS, Scene, buffer};

/// Other end of the stream, and the options of the interface.
pub struct Peer {
    stream: UnixStream,
    is_throttled: bool,
    /// The peer has sent bytes that are no frame.
    is_damaged: bool,
    received: Vec<u8>,
}

impl Peer {
    pub fn new(options: u8) -> Self {
        let (stream, _) = UnixStream::pair().expect("cannot create sockets");
        Self {
            stream,
            is_throttled: options & 1 != 0,
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
            addresses: None,
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
                [&prefix[..], &vec![0x5a; length]].concat()
            }
            false => input.bytes(length % 16).to_vec(),
        };
        // The socket is full if the driver supplies no buffers: then a part of the frame is missing.
        self.is_damaged |= self.stream.write_all(&bytes).is_err();
    }

    fn add_request(&mut self, guest: &mut Guest, input: &mut Input<'_>) {
        let length = usize::from(input.u16()) % 2000 + 1;
        let is_receive = length % 2 == 0;
        let mut data = vec![0x3c; length];
        let zeros = length.min(HEADER);
        data[..zeros].fill(0);
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
        let packet = [&[0; HEADER][..], &[0x77; 60]].concat();
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
        assert!(
            self.is_damaged || last == Some(&[0x77; 60][..]),
            "a packet after a reset is lost"
        );
    }
}

/// The first byte gives the options of the interface.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let peer = Peer::new(input.u8());
    super::run(peer, &mut input);
}
