//! The checksum of a frame: CRC-32C (Castagnoli, RFC 3720 appendix B.4), hardware accelerated where the CPU can.

use crc_fast::{CrcAlgorithm, Digest};

/// Of the bytes so far, however they came.
#[derive(Debug, Clone, Copy)]
pub struct Checksum(Digest);

impl Default for Checksum {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }
}

impl Checksum {
    /// These bytes follow.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The 32 bits of it.
    pub fn value(&self) -> u32 {
        u32::try_from(self.0.finalize() & u64::from(u32::MAX)).unwrap_or_default()
    }
}
