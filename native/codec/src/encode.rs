//! Encoding: what a tensor will need, and writing it.

use crate::checksum;
use crate::element::{Bf16, F16, F32};
use crate::error::CodecError;
use crate::header::{CHECKSUM_AT, HEADER_BYTES, Header};
use crate::isa::Level;
use crate::kinds::{Dtype, Scheme};
use crate::layout::{self, Layout, Row};
use crate::lossless::Part;
use crate::source::Source;
use crate::{apart, fp8, h4, h8, lossless, raw, squeeze};
use std::marker::PhantomData;

/// The largest zstd level that is taken; beyond it zstd wants windows of hundreds of MiB.
const MOST_LEVEL: i64 = 19;

/// A plane below this is not compressed: the message fits one packet with and without.
const LEAST_SQUEEZED_BYTES: usize = 1024;

/// A tensor about to be encoded: its header and how many bytes to have ready.
#[derive(Debug, Clone)]
pub struct Plan {
    header: Header,
    layout: Layout,
    level: i32,
    cpu: Level,
}

/// Runs `$work` with `$element` standing for the dtype's type.
macro_rules! for_dtype {
    ($dtype:expr, $element:ident => $work:expr) => {
        match $dtype {
            Dtype::F32 => {
                type $element = F32;
                $work
            }
            Dtype::F16 => {
                type $element = F16;
                $work
            }
            Dtype::Bf16 => {
                type $element = Bf16;
                $work
            }
        }
    };
}
pub(crate) use for_dtype;

impl Plan {
    /// How `rows` x `cols` values go by `scheme`, or by the one that the shape leads to. `zstd_level` 0 leaves
    /// zstd out, 1 is an entropy coder alone (the best here), 2 to 19 are zstd's own levels.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`], [`CodecError::BadGroup`], [`CodecError::BadLevel`].
    pub fn new(
        scheme: Scheme,
        dtype: Dtype,
        rows: u64,
        cols: u64,
        group: u64,
        zstd_level: i64,
    ) -> Result<Self, CodecError> {
        let header = Header::new(scheme, dtype, rows, cols, group)?;
        let bad_level = CodecError::BadLevel(zstd_level);
        let level =
            if (0..=MOST_LEVEL).contains(&zstd_level) { zstd_level as i32 } else { return Err(bad_level) };
        Ok(Self { header, layout: Layout::of(&header)?, level, cpu: Level::best() })
    }

    /// The same by the instructions of `cpu`, which tests use to compare them.
    #[must_use]
    pub fn on(self, cpu: Level) -> Self {
        Self { cpu, ..self }
    }

    /// The most bytes that the blob may have if the values are finite; exact where nothing goes through zstd.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.total
    }

    /// The plan for the same tensor when [`Plan::write`] said [`CodecError::NotFinite`].
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`].
    pub fn raw(&self) -> Result<Self, CodecError> {
        let header = self.header.raw();
        Ok(Self { header, layout: Layout::of(&header)?, ..self.clone() })
    }

    /// Writes the blob to the start of `out`, which has room for [`Plan::bytes`], and says how long it is.
    ///
    /// # Errors
    ///
    /// [`CodecError::NotFinite`] when only raw will do; the others when the arguments do not fit each other.
    pub fn write(&self, source: &Source<'_>, out: &mut [u8]) -> Result<usize, CodecError> {
        let Header { dtype, rows, cols, .. } = self.header;
        if source.dtype() != dtype {
            return Err(CodecError::WrongDtype(source.dtype()));
        }
        if source.shape() != (rows, cols) {
            let (want_rows, want_cols) = source.shape();
            return Err(CodecError::WrongShape { rows, cols, want_rows, want_cols });
        }
        let given = out.len();
        let out = out.get_mut(..self.bytes()).ok_or(CodecError::BadOutput { needed: self.bytes(), given })?;
        let (header, layout) = match self.header.scheme {
            Scheme::Lossless => self.write_lossless(*source, out)?,
            _ => self.write_codes(*source, out)?,
        };
        let blob = out.get_mut(..layout.total).unwrap_or_default();
        put(blob, 0, &header.write());
        let checksum = checksum::of(blob);
        put(blob, CHECKSUM_AT, &checksum.to_le_bytes());
        Ok(layout.total)
    }

    fn write_codes(&self, source: Source<'_>, out: &mut [u8]) -> Result<(Header, Layout), CodecError> {
        let row = Row::new(self.header.cols);
        let [first, second, third, fourth] = self.layout.cut_mut(out);
        let dtype = self.header.dtype;
        match self.header.scheme {
            Scheme::Raw => raw::encode(source, first),
            Scheme::Lossless => {}
            Scheme::H8 => for_dtype!(dtype, E => self.cpu.run(h8::Encode::<E> {
                source, row, scales: first, codes: second, element: PhantomData,
            }))?,
            Scheme::H6 => squeeze::with_row(row.groups(), |scratch| {
                for_dtype!(dtype, E => self.cpu.run(apart::Encode::<E, apart::H6> {
                    source, row, scales: first, kept: second, columns: third, codes: fourth, scratch,
                    element: PhantomData,
                }))
            })?,
            Scheme::H4 => squeeze::with_row(row.groups(), |scratch| {
                for_dtype!(dtype, E => self.cpu.run(apart::Encode::<E, h4::H4> {
                    source, row, scales: first, kept: second, columns: third, codes: fourth, scratch,
                    element: PhantomData,
                }))
            })?,
            Scheme::E4m3 | Scheme::E5m2 => return self.write_floats(source, out),
        }
        Ok((self.header, self.layout.clone()))
    }

    fn write_floats(&self, source: Source<'_>, out: &mut [u8]) -> Result<(Header, Layout), CodecError> {
        let [scales, codes, ..] = self.layout.cut_mut(out);
        if self.header.scheme == Scheme::E4m3 {
            self.run_floats::<fp8::E4m3>(source, scales, codes)?;
        } else {
            self.run_floats::<fp8::E5m2>(source, scales, codes)?;
        }
        if !self.squeezes(codes.len()) {
            return Ok((self.header, self.layout.clone()));
        }
        squeeze::with_plane(codes.len(), |room| {
            let Some(bytes) = squeeze::pack(codes, self.level, self.cpu, room)? else {
                return Ok((self.header, self.layout.clone()));
            };
            put(codes, 0, room.get(..bytes).unwrap_or_default());
            self.squeezed(bytes)
        })
    }

    fn run_floats<F: fp8::Format>(
        &self,
        source: Source<'_>,
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), CodecError> {
        let (row, by_row) = (Row::new(self.header.cols), self.header.group == 0);
        for_dtype!(self.header.dtype, E => self.cpu.run(fp8::Encode::<E, F> {
            source, row, by_row, scales, codes, element: PhantomData,
        }))
    }

    fn write_lossless(&self, source: Source<'_>, out: &mut [u8]) -> Result<(Header, Layout), CodecError> {
        let dtype = self.header.dtype;
        let plane = layout::plane_bytes(&self.header)?;
        let (header, layout) = if self.squeezes(plane) {
            squeeze::with_plane(plane, |room| {
                for_dtype!(dtype, E => self.cpu.run(lossless::Split::<E> {
                    source, part: Part::Exponents, out: room, element: PhantomData,
                }));
                let [exponents, ..] = self.layout.cut_mut(out);
                match squeeze::pack(room, self.level, self.cpu, exponents)? {
                    Some(bytes) => self.squeezed(bytes),
                    None => {
                        put(exponents, 0, room);
                        Ok((self.header, self.layout.clone()))
                    }
                }
            })?
        } else {
            let [exponents, ..] = self.layout.cut_mut(out);
            for_dtype!(dtype, E => self.cpu.run(lossless::Split::<E> {
                source, part: Part::Exponents, out: exponents, element: PhantomData,
            }));
            (self.header, self.layout.clone())
        };
        let [_, rest, ..] = layout.cut_mut(out);
        for_dtype!(dtype, E => self.cpu.run(lossless::Split::<E> {
            source, part: Part::Rest, out: rest, element: PhantomData,
        }));
        Ok((header, layout))
    }

    fn squeezes(&self, plane: usize) -> bool {
        self.level > 0 && plane >= LEAST_SQUEEZED_BYTES
    }

    /// What changes when the plane became `bytes` bytes.
    fn squeezed(&self, bytes: usize) -> Result<(Header, Layout), CodecError> {
        let squeezed = u32::try_from(bytes).map_err(|_| CodecError::Compressor)?;
        let header = Header { squeezed: Some(squeezed), ..self.header };
        Ok((header, Layout::of(&header)?))
    }
}

/// The most bytes that a blob of such a tensor may have, whatever its values are.
///
/// # Errors
///
/// As [`Plan::new`].
pub fn most_bytes(
    scheme: Scheme,
    dtype: Dtype,
    rows: u64,
    cols: u64,
    group: u64,
) -> Result<usize, CodecError> {
    let plan = Plan::new(scheme, dtype, rows, cols, group, 0)?;
    Ok(plan.bytes().max(plan.raw()?.bytes()))
}

/// Writes a coded tensor to the start of `out`, raw if its values are not all finite, and says how long it is.
///
/// # Errors
///
/// [`CodecError::BadOutput`] when `out` has less room than [`most_bytes`]; the others when the arguments do not fit.
pub fn encode_into(plan: &Plan, source: &Source<'_>, out: &mut [u8]) -> Result<usize, CodecError> {
    let raw = plan.raw()?;
    let needed = plan.bytes().max(raw.bytes());
    if out.len() < needed {
        return Err(CodecError::BadOutput { needed, given: out.len() });
    }
    match plan.write(source, out) {
        Err(CodecError::NotFinite) => raw.write(source, out),
        written => written,
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

const _: () = assert!(CHECKSUM_AT + 4 == HEADER_BYTES);
