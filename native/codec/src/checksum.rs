//! The checksum of a blob: CRC-32C over the header up to the checksum and over all that is behind it.

use crate::header::{CHECKSUM_AT, HEADER_BYTES};
use crc_fast::{CrcAlgorithm, Digest};

/// What stands in the header of `blob`, or is to stand there; 0 for bytes that are too few.
pub(crate) fn of(blob: &[u8]) -> u32 {
    let (Some(head), Some(body)) = (blob.get(..CHECKSUM_AT), blob.get(HEADER_BYTES..)) else {
        return 0;
    };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(body);
    digest.finalize() as u32
}

/// Whether the checksum in the header fits.
pub(crate) fn fits(blob: &[u8]) -> bool {
    blob.get(CHECKSUM_AT..HEADER_BYTES) == Some(of(blob).to_le_bytes().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_checksum_of_the_standard() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(of(&[&[0; CHECKSUM_AT][..], &[9; 4], &[0; 4]].concat()), 0x8A91_36AA);
    }

    #[test]
    fn looks_at_every_byte_but_its_own() {
        let blob: Vec<u8> = (0..255).collect();
        for at in 0..blob.len() {
            let mut other = blob.clone();
            other[at] ^= 1;
            assert_eq!(of(&other) == of(&blob), (CHECKSUM_AT..HEADER_BYTES).contains(&at));
        }
    }
}
