//! Yamux's frame header (github.com/hashicorp/yamux, spec.md).

pub(super) const HEADER_BYTES: usize = 12;
pub(super) const SYN: u16 = 1;
pub(super) const ACK: u16 = 2;
pub(super) const FIN: u16 = 4;
pub(super) const RST: u16 = 8;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Window,
    Ping,
    GoAway,
}

/// A frame without its body, which only data has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) stream: u32,
    /// The body's length, more window, a ping's number, or why the connection ends.
    pub(super) value: u32,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [f0, f1] = self.flags.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let [v0, v1, v2, v3] = self.value.to_be_bytes();
        [0, self.kind as u8, f0, f1, s0, s1, s2, s3, v0, v1, v2, v3]
    }

    /// `None` for another version and for a kind that there is not.
    pub(super) fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [0, kind, f0, f1, s0, s1, s2, s3, v0, v1, v2, v3] = bytes else { return None };
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Window,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            _ => return None,
        };
        Some(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            value: u32::from_be_bytes([v0, v1, v2, v3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Some(header) = Header::from_bytes(bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            } else {
                prop_assert!(bytes[0] != 0 || bytes[1] > 3);
            }
        }
    }
}
