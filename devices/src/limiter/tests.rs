use std::os::fd::AsRawFd;
use std::time::Duration;

use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_assert_eq, proptest};
use snapshot::Persist;

use super::{Bucket, DropLimiter, Limiter};

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

/// Waits up to a minute, which only a failed test needs.
fn becomes_readable(limiter: &Limiter) -> bool {
    readable_within(limiter, 60_000)
}

fn readable_within(limiter: &Limiter, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: limiter.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one pollfd that outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

#[test]
fn no_limit_passes_everything() {
    for none in [None, Some(bucket(0, 100)), Some(bucket(100, 0))] {
        let mut limiter = Limiter::new(none, none).unwrap();
        assert!(!limiter.has_limit());
        for _ in 0..1000 {
            assert!(limiter.consume(u64::MAX, ms(0)));
        }
    }
}

#[test]
fn bucket_empties_and_refills() {
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
fn rejection_by_one_bucket_consumes_nothing_of_other() {
    let mut limiter = Limiter::new(Some(bucket(1000, 1000)), Some(bucket(1, 100))).unwrap();
    assert!(limiter.consume(0, ms(0)));
    assert!(!limiter.consume(1000, ms(50)));
    assert!(limiter.consume(1000, ms(100)));
    assert!(!limiter.consume(1000, ms(300)));
    assert!(limiter.consume(200, ms(300)));
}

#[test]
fn burst_is_consumed_first_and_once() {
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
fn oversized_request_passes_and_leaves_debt() {
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
fn timer_expires_when_request_can_pass() {
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
fn update_wakes_throttled_device() {
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
    assert!(!limiter.has_limit());
}

#[test]
fn update_without_throttled_request_leaves_timer() {
    let mut limiter = bandwidth(bucket(1, 1));
    limiter.update(Some(bucket(2, 1)), Some(bucket(1, 1)));
    assert!(!readable_within(&limiter, 0));
}

#[test]
fn levels_survive_snapshot_without_time_in_between() {
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
fn invalid_state_is_rejected() {
    let state = |change: fn(&mut super::LimiterState)| {
        let mut state = bandwidth(bucket(10, 10)).save().unwrap();
        change(&mut state);
        state
    };
    let level = |size, used| {
        let mut limiter = bandwidth(bucket(size, 10));
        assert!(limiter.consume(used, ms(0)));
        limiter.save().unwrap().bandwidth
    };
    assert!(bandwidth(bucket(1, 1)).restore(state(|_| ())).is_ok());
    let mut encoded = payload_of(&level(10, 5));
    // postcard encodes the three numbers of the bucket in one byte each; the level follows them.
    assert_eq!(encoded[..5], [1, 10, 10, 0, 5]);
    encoded[4] = 11;
    assert!(restore_payload(&encoded).unwrap_err().contains("11 tokens"));
    encoded[4] = 5;
    encoded[5] = 3;
    assert!(restore_payload(&encoded).unwrap_err().contains("debt"));
    encoded[5] = 0;
    encoded[6] = 1;
    assert!(restore_payload(&encoded).unwrap_err().contains("left of a burst"));
    encoded[6] = 0;
    encoded[1] = 0;
    assert!(restore_payload(&encoded).unwrap_err().contains("without a limit"));
}

fn payload_of(level: &Option<super::BucketLevel>) -> Vec<u8> {
    let state = super::LimiterState {
        bandwidth: level.clone(),
        operations: None,
    };
    let mut writer = snapshot::ArchiveWriter::new();
    writer.write("k", &state).unwrap();
    let bytes = writer.into_bytes();
    bytes[bytes.len() - payload_length(&bytes)..].to_vec()
}

fn payload_length(bytes: &[u8]) -> usize {
    // The length follows the one-letter key, the schema name and its version.
    let at = 2 + 1 + 2 + "limiter".len() + 4;
    usize::from(bytes[at])
}

fn restore_payload(payload: &[u8]) -> Result<(), String> {
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
    fn passed_tokens_never_exceed_burst_and_refill(
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
            let refill = now.as_nanos() * u128::from(bucket.size) / (u128::from(bucket.refill_time_ms) * 1_000_000);
            let allowed = u128::from(bucket.size) + u128::from(bucket.one_time_burst) + refill;
            // An oversized request may exceed the limit, but only by its own overdraft.
            prop_assert!(passed <= allowed);
            passed += u128::from(bytes);
            prop_assert!(passed <= allowed || bytes > bucket.size);
        }
    }

    #[test]
    fn request_passes_after_wait_and_not_before(
        bucket in any_bucket(),
        requests in proptest::collection::vec(0_u64..8000, 1..100),
    ) {
        let mut level = super::BucketLevel::full(bucket);
        let mut now = Duration::ZERO;
        for bytes in requests {
            level.fill(now);
            let wait = level.wait_time(bytes);
            if !wait.is_zero() {
                let mut early = level.clone();
                early.fill(now + wait.saturating_sub(Duration::from_nanos(1)));
                prop_assert!(!early.wait_time(bytes).is_zero());
            }
            now += wait;
            level.fill(now);
            prop_assert_eq!(level.wait_time(bytes), Duration::ZERO);
            level.consume(bytes);
        }
    }

    #[test]
    fn extreme_numbers_keep_state_valid(
        size in any::<u64>(), refill_time_ms in any::<u64>(), one_time_burst in any::<u64>(),
        requests in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20),
    ) {
        let mut limiter = bandwidth(Bucket { size, refill_time_ms, one_time_burst });
        let mut now = Duration::ZERO;
        for (bytes, pause) in requests {
            now = now.saturating_add(Duration::from_nanos(pause));
            limiter.consume(bytes, now);
        }
        prop_assert!(limiter.save().unwrap().bandwidth.is_none_or(|level| level.invalid_reason().is_none()));
    }
}

#[test]
fn drop_limiter_passes_only_available_tokens() {
    for none in [bucket(0, 100), bucket(100, 0)] {
        assert!(DropLimiter::new(none).is_none());
    }
    let mut limiter = DropLimiter::new(Bucket {
        one_time_burst: 5,
        ..bucket(10, 1000)
    })
    .unwrap();
    assert_eq!(limiter.consume_available(12, ms(0)), 12);
    assert_eq!(limiter.consume_available(12, ms(0)), 3);
    assert_eq!(limiter.consume_available(1, ms(99)), 0);
    // One token in 100 ms: the dropped bytes are no debt.
    assert_eq!(limiter.consume_available(2, ms(250)), 2);
    assert_eq!(limiter.consume_available(1, ms(250)), 0);
    // The burst is not refilled.
    assert_eq!(limiter.consume_available(usize::MAX, ms(1_000_000)), 10);
}
