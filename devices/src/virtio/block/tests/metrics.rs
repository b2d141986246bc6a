use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Bench, ENGINES, FLUSH, GET_ID, IOERR, OK, SECTORS, Scratch, config};
use crate::clock::Clock;
use crate::virtio::block::Block;
use crate::virtio::block::metrics::SAMPLE;

/// A clock that goes on by 3 us whenever it is looked at.
struct Ticking(Arc<AtomicU32>);

impl Clock for Ticking {
    fn now(&self) -> Duration {
        Duration::from_micros(3) * self.0.fetch_add(1, Ordering::SeqCst)
    }
}

#[test]
fn one_read_of_some_and_every_flush_is_timed() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let looks = Arc::new(AtomicU32::new(0));
        let config = config(scratch.path(), engine);
        let block = Block::open(&config, Box::new(Ticking(looks.clone()))).unwrap();
        let mut bench = Bench::of(block, super::ManualClock::default());
        for _ in 0..2 * SAMPLE {
            assert_eq!(bench.read(0, 512).0, OK);
        }
        for _ in 0..5 {
            assert_eq!(bench.one(FLUSH, 0, &[]).0, OK);
        }
        assert_eq!(bench.write(0, &[1; 512]), OK);
        let metrics = bench.block.metrics();
        let timed = |histogram: crate::Histogram| (histogram.count(), histogram.sum_us());
        assert_eq!(timed(metrics.read_latency), (2, 6));
        assert_eq!(timed(metrics.write_latency), (1, 3));
        assert_eq!(timed(metrics.flush_latency), (5, 15));
        assert_eq!((metrics.reads, metrics.writes, metrics.flushes), (32, 1, 5));
        assert_eq!(looks.load(Ordering::SeqCst), 16, "looks at the clock");
        // Neither what fails nor what is something else.
        for _ in 0..2 * SAMPLE {
            assert_eq!(bench.read(SECTORS, 512).0, IOERR);
            assert_eq!(bench.one(GET_ID, 0, &[]).0, OK);
        }
        assert_eq!(bench.block.metrics().read_latency.count(), 2);
    }
}
