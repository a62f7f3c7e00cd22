//! The checksum of a frame that Python puts together.

use swarmnode_transport::checksum::Checksum;

/// CRC-32C of `parts` as if they were one run of bytes.
///
/// A frame's header and tensor live in different buffers; taking them apart here saves joining them first.
pub fn frame_checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut checksum = Checksum::default();
    parts.into_iter().for_each(|part| checksum.add(part));
    checksum.value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matches_the_check_value_of_the_standard() {
        assert_eq!(frame_checksum([b"123456789".as_slice()]), 0xE306_9283);
        assert_eq!(frame_checksum([]), 0);
    }

    /// One bit at a time, straight from the polynomial.
    fn slow_crc32c(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    proptest! {
        #[test]
        fn equals_the_slow_one_however_it_is_cut(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(frame_checksum([head, tail]), slow_crc32c(&bytes));
        }

        #[test]
        fn notices_one_flipped_bit(mut bytes in prop::collection::vec(any::<u8>(), 1..256), at: prop::sample::Index, bit in 0u32..8) {
            let before = frame_checksum([bytes.as_slice()]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(frame_checksum([bytes.as_slice()]), before);
        }
    }
}
