//! Any bytes behind the magic, decoded: `cargo +nightly fuzz run decode` in native/codec. What anybody can put right is put
//! right first (length, padding, checksum), so that what is behind is reached; every kind of CPU code has to come to the
//! same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarmnode_codec::{CodecError, Dtype, HEADER_BYTES, Level, decode_into, decode_on, inspect};

/// More than this is only more of the same; behind zstd a short blob may be many values.
const MOST_BYTES: usize = 1 << 16;
const CHECKSUM_AT: usize = 28;
/// Between two sections there are fewer bytes of padding, and there are four sections.
const MOST_PADDING: usize = 4 * 64;

fn seal(blob: &mut [u8]) {
    let covered = blob[..CHECKSUM_AT].iter().chain(&blob[HEADER_BYTES..]);
    let crc = covered.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    });
    blob[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&(!crc).to_le_bytes());
}

fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut blob = [&b"SWC\x01"[..], bytes].concat();
    if let Err(CodecError::WrongLength { derived, .. }) = inspect(&blob) {
        blob.resize(derived.min(MOST_BYTES), 0);
    }
    let header = inspect(&blob).ok()?;
    let (rows, cols) = (u64::from(header.rows), u64::from(header.cols));
    if rows * cols > MOST_BYTES as u64 {
        return None;
    }
    let mut out = vec![0; (rows * cols) as usize * header.dtype.bytes()];
    for _ in 0..MOST_PADDING {
        match decode_into(&blob, header.dtype, rows, cols, &mut out) {
            Err(CodecError::NotZero { offset }) => blob[offset] = 0,
            _ => break,
        }
    }
    seal(&mut blob);
    Some(blob)
}

fuzz_target!(|bytes: &[u8]| {
    let Some(blob) = mended(bytes) else { return };
    let Ok(header) = inspect(&blob) else { return };
    let (rows, cols) = (u64::from(header.rows), u64::from(header.cols));
    for dtype in Dtype::ALL {
        let size = (rows * cols) as usize * dtype.bytes();
        let mut results = Level::available().into_iter().map(|level| {
            let mut out = vec![0; size];
            decode_on(level, &blob, dtype, rows, cols, &mut out).map(|()| out)
        });
        let first = results.next();
        // A hostile scale can overflow to NaN, whose sign is the CPU's; the same CPU has to agree with itself.
        results.for_each(|other| assert_eq!(first, Some(other)));
    }
});
