//! Decoding: everything that can be wrong with the bytes is looked at before the first value is written.

use crate::apart::{self, Code, H6};
use crate::checksum;
use crate::element::{Bf16, Element, F16, F32};
use crate::encode::for_dtype;
use crate::error::CodecError;
use crate::h4::H4;
use crate::header::Header;
use crate::isa::Level;
use crate::kinds::{Dtype, Scheme};
use crate::layout::{self, Layout, Row};
use crate::plane::Plane;
use crate::{fp8, h8, lossless, outliers, raw, scale};
use std::marker::PhantomData;

/// What a blob's header says, checked against its length. Neither the checksum nor the sections are looked at.
///
/// # Errors
///
/// Every [`CodecError`] that names a field of the header.
pub fn inspect(blob: &[u8]) -> Result<Header, CodecError> {
    Header::read(blob)
}

/// Decodes `blob` into `out`, which has `rows` x `cols` values of `dtype` and is of exactly that size. After an error
/// the content of `out` is anything.
///
/// # Errors
///
/// A [`CodecError`] that says what is wrong with the bytes.
pub fn decode_into(
    blob: &[u8],
    dtype: Dtype,
    rows: u64,
    cols: u64,
    out: &mut [u8],
) -> Result<(), CodecError> {
    decode_on(Level::best(), blob, dtype, rows, cols, out)
}

/// The same by the instructions of `cpu`, which tests use to compare them.
///
/// # Errors
///
/// As [`decode_into`].
pub fn decode_on(
    cpu: Level,
    blob: &[u8],
    dtype: Dtype,
    rows: u64,
    cols: u64,
    out: &mut [u8],
) -> Result<(), CodecError> {
    let want = Header::new(Scheme::Raw, dtype, rows, cols, 0)?;
    let header = Header::read(blob)?;
    if (header.rows, header.cols) != (want.rows, want.cols) {
        let (want_rows, want_cols) = (want.rows, want.cols);
        return Err(CodecError::WrongShape { rows: header.rows, cols: header.cols, want_rows, want_cols });
    }
    let needed = layout::plane_bytes(&want)?.saturating_mul(dtype.bytes());
    if out.len() != needed {
        return Err(CodecError::BadOutput { needed, given: out.len() });
    }
    let layout = Layout::of(&header)?;
    if let Some(offset) = layout.dirt(blob) {
        return Err(CodecError::NotZero { offset });
    }
    if !checksum::fits(blob) {
        return Err(CodecError::BadChecksum);
    }
    let sections = layout.cut(blob);
    for_dtype!(dtype, O => sections_into::<O>(cpu, &header, sections, out))
}

fn sections_into<O: Element>(
    cpu: Level,
    header: &Header,
    sections: [&[u8]; 4],
    out: &mut [u8],
) -> Result<(), CodecError> {
    let [first, second, third, fourth] = sections;
    let row = Row::new(header.cols);
    let (squeezed, values) = (header.squeezed.is_some(), layout::plane_bytes(header)?);
    match header.scheme {
        Scheme::Raw => for_dtype!(header.dtype, E => cpu.run(raw::Decode::<E, O> {
            values: first, out, element: PhantomData,
        })),
        Scheme::Lossless => {
            let exponents = Plane::open(first, squeezed, values, out)?;
            for_dtype!(header.dtype, E => cpu.run(lossless::Join::<E, O> {
                exponents, rest: second, values, out, element: PhantomData,
            }));
        }
        Scheme::H8 => {
            scale::check(first)?;
            cpu.run(h8::Decode::<O> { row, scales: first, codes: second, out, element: PhantomData });
        }
        Scheme::H6 => {
            check_apart::<H6>(row, [first, second, third, fourth])?;
            cpu.run(apart::Decode::<O, H6> {
                row,
                scales: first,
                kept: second,
                columns: third,
                codes: fourth,
                out,
                element: PhantomData,
            });
        }
        Scheme::H4 => {
            check_apart::<H4>(row, [first, second, third, fourth])?;
            cpu.run(apart::Decode::<O, H4> {
                row,
                scales: first,
                kept: second,
                columns: third,
                codes: fourth,
                out,
                element: PhantomData,
            });
        }
        Scheme::E4m3 | Scheme::E5m2 => {
            scale::check(first)?;
            let by_row = header.group == 0;
            let codes = Plane::open(second, squeezed, values, out)?;
            let finite = if header.scheme == Scheme::E4m3 {
                cpu.run(fp8::Decode::<O, fp8::E4m3> {
                    row,
                    by_row,
                    scales: first,
                    codes,
                    out,
                    element: PhantomData,
                })
            } else {
                cpu.run(fp8::Decode::<O, fp8::E5m2> {
                    row,
                    by_row,
                    scales: first,
                    codes,
                    out,
                    element: PhantomData,
                })
            };
            if !finite {
                return Err(CodecError::BadFloatCode(header.scheme));
            }
        }
    }
    Ok(())
}

fn check_apart<C: Code>(row: Row, [scales, kept, columns, codes]: [&[u8]; 4]) -> Result<(), CodecError> {
    scale::check(scales)?;
    outliers::check(kept, columns, row.cols)?;
    if apart::check_unused(codes, row, C::BITS) { Ok(()) } else { Err(CodecError::UnusedBits) }
}
