//! Requests to random instances, as in `make storm`, and the checks of their responses.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::host::{Supervisor, enter_namespace};
use crate::load::Load;
use crate::network::{at, register_network};

/// Number of instances.
const COUNT: u32 = 20;
/// Address of the first instance.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
/// Requests a second.
const RATE: f64 = 20.0;
/// Duration of the load.
const DURATION: Duration = Duration::from_secs(3);
/// Limit of the wait for the last response.
const LIMIT: Duration = Duration::from_secs(120);
/// Length of a response: payload, identity record, three numbers.
const RESPONSE: usize = 8 + 88 + 12;

#[test]
fn each_request_is_answered_by_its_instance() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    register_network(&supervisor);
    for number in 0..COUNT {
        let address = Ipv4Addr::from(u32::from(FIRST) + number);
        supervisor.register(&format!("f{number}"), at(&address.to_string()));
    }
    let mut load = Load::new(Ipv4Addr::new(10, 1, 0, 1), FIRST, COUNT).unwrap();
    let outcome = load.run(RATE, DURATION, LIMIT).unwrap();
    assert_eq!(
        (outcome.lost, outcome.wrong),
        (0, 0),
        "{:?} {}",
        outcome.reports,
        supervisor.log()
    );
    assert_eq!(outcome.times.len(), outcome.requests);
    assert!(outcome.requests >= 60, "{}", outcome.requests);
    assert!(supervisor.metric("mayfly_standby_wakes_total{cause=\"frame\"}") > 0);
}

/// Returns the numbers of lost and wrong responses to one request. A server answers with each of `responses`: the number of datagrams
/// that it has served, and the place of a changed byte.
fn faults(responses: &'static [(u32, Option<usize>)], limit: Duration) -> (usize, usize) {
    // A child that another test starts keeps the last server's socket until its `execve`.
    let server = scratch::wait_for("the port", || UdpSocket::bind("127.0.0.1:15").ok());
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let mut load = Load::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 1).unwrap();
    let responder = thread::spawn(move || {
        let mut buffer = [0; RESPONSE];
        let (_, client) = server.recv_from(&mut buffer).unwrap();
        for (served, changed) in responses {
            let mut response = buffer;
            response[RESPONSE - 8..RESPONSE - 4].copy_from_slice(&served.to_be_bytes());
            changed.iter().for_each(|at| response[*at] ^= 1);
            server.send_to(&response, client).unwrap();
        }
    });
    let outcome = load.run_each(0..1, limit, || Ok(true)).unwrap();
    scratch::join(responder);
    (outcome.lost, outcome.wrong)
}

#[test]
fn lost_and_foreign_responses_are_found() {
    if !enter_namespace() {
        return;
    }
    assert_eq!(faults(&[(0, None)], LIMIT), (0, 0));
    assert_eq!(faults(&[], Duration::from_millis(100)), (1, 0));
    // State of another instance, address of another instance, number of another request. The right response ends the wait.
    assert_eq!(faults(&[(1, None), (0, None)], LIMIT), (0, 1));
    assert_eq!(faults(&[(0, Some(3)), (0, None)], LIMIT), (0, 1));
    assert_eq!(faults(&[(0, Some(7)), (0, None)], LIMIT), (0, 1));
}
