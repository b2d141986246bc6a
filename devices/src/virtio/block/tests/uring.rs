use libc::iovec;

use crate::virtio::block::uring::skip;

/// Pieces of `lengths`, each at a thousand times its number, where nothing is ever touched.
fn pieces(lengths: &[usize]) -> Vec<iovec> {
    let piece = |(number, length): (usize, &usize)| iovec {
        iov_base: std::ptr::without_provenance_mut(number * 1000),
        iov_len: *length,
    };
    lengths.iter().enumerate().map(piece).collect()
}

#[test]
fn what_was_moved_in_part_goes_on_where_it_stopped() {
    let cases: [(u64, &[(usize, usize)]); 7] = [
        (0, &[(0, 10), (1000, 20), (2000, 30)]),
        (3, &[(3, 7), (1000, 20), (2000, 30)]),
        (10, &[(1000, 20), (2000, 30)]),
        (11, &[(1001, 19), (2000, 30)]),
        (30, &[(2000, 30)]),
        (59, &[(2029, 1)]),
        (60, &[]),
    ];
    for (count, expected) in cases {
        let mut pieces = pieces(&[10, 20, 30]);
        skip(&mut pieces, count);
        let left: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.iov_base.addr(), piece.iov_len))
            .collect();
        assert_eq!(left, expected, "after {count} bytes");
    }
}
