//! Any bytes, decoded: `cargo +nightly fuzz run decode` in native/codec. The checksum is put right first, as anybody can do
//! that; every kind of CPU code has to come to the same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarmnode_codec::{Dtype, HEADER_BYTES, Level, decode_on, inspect};

/// More than this is only more of the same.
const MOST_BYTES: usize = 1 << 20;

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut blob = bytes.to_vec();
    if blob.len() >= HEADER_BYTES {
        let covered = blob[..28].iter().chain(&blob[HEADER_BYTES..]);
        let crc = covered.fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
        });
        blob[28..HEADER_BYTES].copy_from_slice(&(!crc).to_le_bytes());
    }
    blob
}

fuzz_target!(|bytes: &[u8]| {
    let blob = sealed(bytes);
    let Ok(header) = inspect(&blob) else { return };
    let (rows, cols) = (u64::from(header.rows), u64::from(header.cols));
    for dtype in Dtype::ALL {
        let size = (rows * cols) as usize * dtype.bytes();
        if size > MOST_BYTES {
            return;
        }
        let mut results = Level::available().into_iter().map(|level| {
            let mut out = vec![0; size];
            decode_on(level, &blob, dtype, rows, cols, &mut out).map(|()| out)
        });
        let first = results.next();
        // A hostile scale can overflow to NaN, whose sign is the CPU's; the same CPU has to agree with itself.
        results.for_each(|other| assert_eq!(first, Some(other)));
    }
});
