//! How much a device may do in a time.

use serde::{Deserialize, Serialize};
use vmm::config::{Bucket, RateLimits};

use super::Field;

/// Limits of a device; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Requests or packets.
    pub ops: Option<TokenBucket>,
}

/// One limit. A size or a refill time of zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TokenBucket {
    /// What a full bucket holds.
    pub size: u64,
    /// Time in milliseconds in which an empty one fills.
    pub refill_time: u64,
    /// What there is on top at the beginning, and only then.
    pub one_time_burst: Option<u64>,
}

const BUCKET: &[Field] = &[
    Field::any("size"),
    Field::any("refill_time"),
    Field::any("one_time_burst"),
];

/// Fields of a [`RateLimiter`].
pub(super) const FIELDS: &[Field] = &[Field::object("bandwidth", BUCKET), Field::object("ops", BUCKET)];

impl RateLimiter {
    /// The limits that there are.
    pub fn limits(limiter: Option<Self>) -> RateLimits {
        let changes = Self::changes(limiter);
        let real = |bucket: &Bucket| bucket.size != 0 && bucket.refill_time_ms != 0;
        RateLimits {
            bandwidth: changes.bandwidth.filter(real),
            operations: changes.operations.filter(real),
        }
    }

    /// The limits that are to replace others, among them those that are to be no limit any more.
    pub fn changes(limiter: Option<Self>) -> RateLimits {
        let limiter = limiter.unwrap_or_default();
        let bucket = |bucket: TokenBucket| Bucket {
            size: bucket.size,
            refill_time_ms: bucket.refill_time,
            one_time_burst: bucket.one_time_burst.unwrap_or(0),
        };
        RateLimits {
            bandwidth: limiter.bandwidth.map(bucket),
            operations: limiter.ops.map(bucket),
        }
    }

    /// What `limits` are in a body.
    pub fn of(limits: RateLimits) -> Option<Self> {
        let bucket = |bucket: Bucket| {
            (bucket.size != 0 && bucket.refill_time_ms != 0).then_some(TokenBucket {
                size: bucket.size,
                refill_time: bucket.refill_time_ms,
                one_time_burst: Some(bucket.one_time_burst).filter(|burst| *burst != 0),
            })
        };
        let limiter = Self {
            bandwidth: limits.bandwidth.and_then(bucket),
            ops: limits.operations.and_then(bucket),
        };
        (limiter != Self::default()).then_some(limiter)
    }
}
