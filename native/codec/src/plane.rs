//! The plane of one byte a value that lossless and fp8 may put through zstd: where it is read from while decoding.

use crate::error::CodecError;
use crate::layout::GROUP;
use crate::squeeze;

/// One byte for every value, either in the blob or, unpacked, in the last bytes of the output itself.
///
/// An output value has at least two bytes, so writing values from the front never overtakes the bytes that are still
/// to be read from the back; only the block in hand has to be copied before it is overwritten. That saves a buffer
/// that a sender could make us allocate.
pub(crate) enum Plane<'a> {
    Stored(&'a [u8]),
    InOutput { start: usize },
}

impl<'a> Plane<'a> {
    /// Unpacks `section` into the end of `out` if it went through zstd.
    pub fn open(
        section: &'a [u8],
        squeezed: bool,
        values: usize,
        out: &mut [u8],
    ) -> Result<Self, CodecError> {
        if !squeezed {
            return Ok(Self::Stored(section));
        }
        let start = out.len().checked_sub(values).ok_or(CodecError::BadPlane)?;
        squeeze::unpack(section, out.get_mut(start..).unwrap_or_default())?;
        Ok(Self::InOutput { start })
    }

    /// The bytes of all values.
    pub fn all<'b>(&'b self, out: &'b [u8]) -> &'b [u8] {
        match self {
            Self::Stored(section) => section,
            Self::InOutput { start } => out.get(*start..).unwrap_or_default(),
        }
    }

    /// A copy of the `count` bytes from value `at` on, filled up with zeros.
    #[inline(always)]
    pub fn block(&self, out: &[u8], at: usize, count: usize) -> [u8; GROUP] {
        let (bytes, at) = match self {
            Self::Stored(section) => (*section, at),
            Self::InOutput { start } => (out, start + at),
        };
        let bytes = bytes.get(at..).unwrap_or_default();
        if let (GROUP, Some(full)) = (count, bytes.first_chunk()) {
            return *full;
        }
        let mut block = [0; GROUP];
        block.iter_mut().zip(bytes.iter().take(count)).for_each(|(to, from)| *to = *from);
        block
    }
}
