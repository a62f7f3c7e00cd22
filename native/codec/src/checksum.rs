//! The checksum of a blob: CRC-32C over the header up to the checksum and over all that is behind it.

use crate::header::{CHECKSUM_AT, HEADER_BYTES};

/// What stands in the header of `blob`, or is to stand there; 0 for bytes that are too few.
pub(crate) fn of(blob: &[u8]) -> u32 {
    let (Some(head), Some(body)) = (blob.get(..CHECKSUM_AT), blob.get(HEADER_BYTES..)) else {
        return 0;
    };
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// Whether the checksum in the header fits.
pub(crate) fn fits(blob: &[u8]) -> bool {
    blob.get(CHECKSUM_AT..HEADER_BYTES) == Some(of(blob).to_le_bytes().as_slice())
}
