//! Rate limiters.

use serde::{Deserialize, Serialize};
use vmm::config::{Bucket, RateLimits};

use super::macros::schema;

schema! {
    /// Rate limiter. Without a bucket there is no limit; in a change, the present bucket stays.
    #[derive(Copy, Default, Deserialize, Serialize)]
    body RateLimiter {
        /// Bucket of bytes.
        bandwidth: Option<TokenBucket>;
        /// Bucket of operations: requests or packets.
        ops: Option<TokenBucket>;
    }
    example "{bandwidth: {size: 1048576, refill_time: 100}, ops: {size: 100, refill_time: 1000}}";
}

schema! {
    /// Token bucket. A size or refill time of 0 means no limit.
    #[derive(Copy, Deserialize, Serialize)]
    body TokenBucket {
        /// Capacity in tokens.
        size: u64;
        /// Time to fill an empty bucket, in milliseconds.
        refill_time: u64;
        /// Additional tokens at the start, never refilled.
        one_time_burst: Option<u64> = 0;
    }
    example "{size: 1048576, refill_time: 100, one_time_burst: 4194304}";
}

impl RateLimiter {
    /// Returns the limits of a new device: buckets without a limit are absent.
    pub fn limits(limiter: Option<Self>) -> RateLimits {
        let RateLimits {
            bandwidth,
            operations,
        } = Self::changes(limiter);
        RateLimits {
            bandwidth: bandwidth.filter(is_limit),
            operations: operations.filter(is_limit),
        }
    }

    /// Returns limits that replace present ones: buckets without a limit remove the present bucket.
    pub fn changes(limiter: Option<Self>) -> RateLimits {
        let Self { bandwidth, ops } = limiter.unwrap_or_default();
        RateLimits {
            bandwidth: bandwidth.map(TokenBucket::into_config),
            operations: ops.map(TokenBucket::into_config),
        }
    }

    /// Converts from the configuration of the VMM. Returns `None` without a limit.
    pub fn from_limits(limits: RateLimits) -> Option<Self> {
        let RateLimits {
            bandwidth,
            operations,
        } = limits;
        let bucket = |bucket: Option<Bucket>| bucket.filter(is_limit).map(TokenBucket::from_config);
        let limiter = Self {
            bandwidth: bucket(bandwidth),
            ops: bucket(operations),
        };
        (limiter != Self::default()).then_some(limiter)
    }
}

impl TokenBucket {
    /// Converts to the configuration of the VMM.
    pub fn into_config(self) -> Bucket {
        let Self {
            size,
            refill_time,
            one_time_burst,
        } = self;
        Bucket {
            size,
            refill_time_ms: refill_time,
            one_time_burst: one_time_burst.unwrap_or_default(),
        }
    }

    fn from_config(config: Bucket) -> Self {
        let Bucket {
            size,
            refill_time_ms,
            one_time_burst,
        } = config;
        Self {
            size,
            refill_time: refill_time_ms,
            one_time_burst: Some(one_time_burst).filter(|burst| *burst != 0),
        }
    }
}

fn is_limit(bucket: &Bucket) -> bool {
    bucket.size != 0 && bucket.refill_time_ms != 0
}
