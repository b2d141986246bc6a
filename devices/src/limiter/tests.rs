use std::os::fd::AsRawFd;
use std::time::Duration;

use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_assert_eq, proptest};
use snapshot::Persist;

use super::{Bucket, Limiter};

const fn bucket(size: u64, refill_time_ms: u64) -> Bucket {
    Bucket {
        size,
        refill_time_ms,
        one_time_burst: 0,
    }
}

fn bandwidth(bucket: Bucket) -> Limiter {
    Limiter::new(Some(bucket), None).unwrap()
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Waits up to a minute, which only a limiter that forgot its timer takes.
fn becomes_readable(limiter: &Limiter) -> bool {
    readable_within(limiter, 60_000)
}

fn readable_within(limiter: &Limiter, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: limiter.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one pollfd, and lives until the call is over.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

#[test]
fn nothing_is_limited_without_a_bucket() {
    for none in [None, Some(bucket(0, 100)), Some(bucket(100, 0))] {
        let mut limiter = Limiter::new(none, none).unwrap();
        assert!(!limiter.limits());
        for _ in 0..1000 {
            assert!(limiter.consume(u64::MAX, ms(0)));
        }
    }
}

#[test]
fn a_bucket_empties_and_fills() {
    let mut limiter = bandwidth(bucket(1000, 100));
    assert!(limiter.consume(600, ms(5)));
    assert!(limiter.consume(400, ms(5)));
    assert!(!limiter.consume(1, ms(5)));
    assert!(limiter.consume(10, ms(6)));
    assert!(!limiter.consume(11, ms(7)));
    assert!(limiter.consume(10, ms(7)));
    assert!(limiter.consume(1000, ms(1000)));
    assert!(!limiter.consume(1, ms(1000)));
}

#[test]
fn nothing_is_taken_of_one_bucket_when_the_other_refuses() {
    let mut limiter = Limiter::new(Some(bucket(1000, 1000)), Some(bucket(1, 100))).unwrap();
    assert!(limiter.consume(0, ms(0)));
    assert!(!limiter.consume(1000, ms(50)));
    assert!(limiter.consume(1000, ms(100)));
    assert!(!limiter.consume(1000, ms(300)));
    assert!(limiter.consume(200, ms(300)));
}

#[test]
fn the_burst_is_spent_first_and_once() {
    let mut limiter = bandwidth(Bucket {
        one_time_burst: 500,
        ..bucket(1000, 100)
    });
    assert!(limiter.consume(500, ms(0)));
    assert!(limiter.consume(1000, ms(0)));
    assert!(!limiter.consume(1, ms(0)));
    assert!(!limiter.consume(1000, ms(99)));
    assert!(limiter.consume(1000, ms(1000)));
    assert!(!limiter.consume(1, ms(1000)));
}

#[test]
fn a_request_larger_than_the_bucket_passes_and_is_owed() {
    let mut limiter = bandwidth(bucket(1000, 100));
    assert!(limiter.consume(3000, ms(0)));
    assert!(!limiter.consume(0, ms(199)));
    assert!(limiter.consume(0, ms(200)));
    assert!(!limiter.consume(1, ms(200)));
    assert!(limiter.consume(5000, ms(200)));
    assert!(!limiter.consume(1, ms(700)));
    assert!(limiter.consume(10, ms(701)));
}

#[test]
fn the_timer_says_when_to_ask_again() {
    let mut limiter = bandwidth(bucket(1000, 1));
    assert!(limiter.consume(1000, ms(0)));
    assert!(!limiter.is_throttled());
    assert!(!readable_within(&limiter, 0));
    assert!(!limiter.consume(1000, ms(0)));
    assert!(limiter.is_throttled());
    assert!(becomes_readable(&limiter));
    limiter.clear_timer();
    assert!(!limiter.is_throttled());
    assert!(!readable_within(&limiter, 0));
    assert!(limiter.consume(1000, ms(1)));
}

#[test]
fn an_update_wakes_who_is_throttled() {
    let mut limiter = bandwidth(bucket(1, 1_000_000_000));
    assert!(limiter.consume(1, ms(0)));
    assert!(!limiter.consume(1, ms(0)));
    assert!(!readable_within(&limiter, 0));
    limiter.update(Some(bucket(2, 1_000_000_000)), None);
    assert!(becomes_readable(&limiter));
    limiter.clear_timer();
    assert!(limiter.consume(2, ms(0)));
    assert!(!limiter.consume(1, ms(0)));
    limiter.update(None, None);
    assert!(!limiter.consume(1, ms(0)));
    limiter.update(Some(bucket(0, 0)), None);
    assert!(limiter.consume(u64::MAX, ms(0)));
    assert!(!limiter.limits());
}

#[test]
fn an_update_that_nobody_waits_for_wakes_nobody() {
    let mut limiter = bandwidth(bucket(1, 1));
    limiter.update(Some(bucket(2, 1)), Some(bucket(1, 1)));
    assert!(!readable_within(&limiter, 0));
}

#[test]
fn the_tokens_survive_a_snapshot_and_its_time_does_not_count() {
    let mut limiter = Limiter::new(Some(bucket(1000, 100)), Some(bucket(50, 100))).unwrap();
    assert!(limiter.consume(1000, ms(1_000_000)));
    let mut fresh = Limiter::new(None, None).unwrap();
    fresh.restore(limiter.save().unwrap()).unwrap();
    fresh.update(None, Some(bucket(0, 0)));
    assert!(!fresh.consume(1, ms(3)));
    assert!(fresh.consume(10, ms(4)));
    assert!(!fresh.consume(1, ms(4)));
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let state = |change: fn(&mut super::LimiterState)| {
        let mut state = bandwidth(bucket(10, 10)).save().unwrap();
        change(&mut state);
        state
    };
    let tokens = |size, used| {
        let mut limiter = bandwidth(bucket(size, 10));
        assert!(limiter.consume(used, ms(0)));
        limiter.save().unwrap().bandwidth
    };
    assert!(bandwidth(bucket(1, 1)).restore(state(|_| ())).is_ok());
    let mut encoded = serde_bytes_of(&tokens(10, 5));
    // The level follows the bucket, whose three numbers are one byte each here.
    assert_eq!(encoded[..5], [1, 10, 10, 0, 5]);
    encoded[4] = 11;
    assert!(restored(&encoded).unwrap_err().contains("11 tokens"));
    encoded[4] = 5;
    encoded[5] = 3;
    assert!(restored(&encoded).unwrap_err().contains("owed"));
    encoded[5] = 0;
    encoded[6] = 1;
    assert!(restored(&encoded).unwrap_err().contains("left of"));
    encoded[6] = 0;
    encoded[1] = 0;
    assert!(restored(&encoded).unwrap_err().contains("without a limit"));
}

fn serde_bytes_of(tokens: &Option<super::BucketLevel>) -> Vec<u8> {
    let state = super::LimiterState {
        bandwidth: tokens.clone(),
        operations: None,
    };
    let mut writer = snapshot::ArchiveWriter::new();
    writer.write("k", &state).unwrap();
    let bytes = writer.into_bytes();
    bytes[bytes.len() - payload_length(&bytes)..].to_vec()
}

fn payload_length(bytes: &[u8]) -> usize {
    // One-letter key, the name of the schema and its version are before the length.
    let at = 2 + 1 + 2 + "limiter".len() + 4;
    usize::from(bytes[at])
}

fn restored(payload: &[u8]) -> Result<(), String> {
    let mut writer = snapshot::ArchiveWriter::new();
    let placeholder = super::LimiterState {
        bandwidth: None,
        operations: None,
    };
    writer.write("k", &placeholder).unwrap();
    let mut bytes = writer.into_bytes();
    let header = bytes.len() - payload_length(&bytes);
    bytes.truncate(header);
    bytes[header - 4] = u8::try_from(payload.len()).unwrap();
    bytes.extend_from_slice(payload);
    let mut reader = snapshot::ArchiveReader::parse(&bytes).unwrap();
    let mut limiter = Limiter::new(None, None).unwrap();
    snapshot::Component::restore_section(&mut limiter, "k", &mut reader).map_err(|error| error.to_string())
}

fn any_bucket() -> impl Strategy<Value = Bucket> {
    (1_u64..5000, 1_u64..1000, 0_u64..3000).prop_map(|(size, refill_time_ms, one_time_burst)| Bucket {
        size,
        refill_time_ms,
        one_time_burst,
    })
}

proptest! {
    #[test]
    fn never_more_than_burst_and_rate(
        bucket in any_bucket(),
        requests in proptest::collection::vec((0_u64..8000, 0_u64..50_000_000), 1..200),
    ) {
        let mut limiter = bandwidth(bucket);
        let mut now = Duration::ZERO;
        let mut passed = 0_u128;
        for (bytes, pause) in requests {
            now += Duration::from_nanos(pause);
            if !limiter.consume(bytes, now) {
                continue;
            }
            let came = now.as_nanos() * u128::from(bucket.size) / (u128::from(bucket.refill_time_ms) * 1_000_000);
            let allowed = u128::from(bucket.size) + u128::from(bucket.one_time_burst) + came;
            // Before the overdraft of this request, and with it when it has none.
            prop_assert!(passed <= allowed);
            passed += u128::from(bytes);
            prop_assert!(passed <= allowed || bytes > bucket.size);
        }
    }

    #[test]
    fn what_waits_as_long_as_it_is_told_passes(
        bucket in any_bucket(),
        requests in proptest::collection::vec(0_u64..8000, 1..100),
    ) {
        let mut tokens = super::BucketLevel::full(bucket);
        let mut now = Duration::ZERO;
        for bytes in requests {
            tokens.fill(now);
            let wait = tokens.wait(bytes);
            if !wait.is_zero() {
                let mut early = tokens.clone();
                early.fill(now + wait.saturating_sub(Duration::from_nanos(1)));
                prop_assert!(!early.wait(bytes).is_zero());
            }
            now += wait;
            tokens.fill(now);
            prop_assert_eq!(tokens.wait(bytes), Duration::ZERO);
            tokens.take(bytes);
        }
    }

    #[test]
    fn no_number_is_too_large(
        size in any::<u64>(), refill_time_ms in any::<u64>(), one_time_burst in any::<u64>(),
        requests in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20),
    ) {
        let mut limiter = bandwidth(Bucket { size, refill_time_ms, one_time_burst });
        let mut now = Duration::ZERO;
        for (bytes, pause) in requests {
            now = now.saturating_add(Duration::from_nanos(pause));
            limiter.consume(bytes, now);
        }
        prop_assert!(limiter.save().unwrap().bandwidth.is_none_or(|tokens| tokens.invalid_reason().is_none()));
    }
}
