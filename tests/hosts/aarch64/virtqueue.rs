//! Virtqueue code of the devices, compiled for aarch64, without a guest.

use std::time::Duration;

use devices::virtio::testing::Stress;

#[test]
fn driver_on_another_processor_loses_nothing() {
    let path = concat!(module_path!(), "::driver_on_another_processor_loses_nothing");
    crate::host::run(path, || {
        for event_idx in [false, true] {
            let duration = Duration::from_secs(5);
            let counts = Stress { event_idx, duration }.run();
            println!("{counts:?}");
            assert!(counts.available > 0 && counts.used > 0, "{counts:?}");
        }
    });
}
