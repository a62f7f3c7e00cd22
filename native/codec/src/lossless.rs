//! lossless: exponents, which repeat, apart from signs and mantissas, which do not. Bit-exact, NaN and all.
//!
//! A float16 is cut at its byte: the upper one has the exponent. Otherwise the exponent is a byte of its own, and the
//! rest of a bfloat16 is one byte (sign, then mantissa); a single has the same and two planes of lower mantissa bytes.

use crate::element::Element;
use crate::isa::{Isa, Work};
use crate::kinds::Dtype;
use crate::layout::GROUP;
use crate::plane::Plane;
use crate::source::Source;
use std::marker::PhantomData;

/// Which of the two parts of the values is wanted: both are walked over the same values, one after the other, because
/// where the rest lies depends on how small the exponents became.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Exponents,
    Rest,
}

pub(crate) struct Split<'a, E> {
    pub source: Source<'a>,
    pub part: Part,
    /// The exponents, or the planes of the rest, the highest byte last.
    pub out: &'a mut [u8],
    pub element: PhantomData<E>,
}

/// A value's bits as bytes: exponent, then the rest from the lowest byte up.
#[inline(always)]
fn split(dtype: Dtype, value: [u8; 4]) -> (u8, [u8; 3]) {
    let [a, b, c, d] = value;
    match dtype {
        Dtype::F16 => (b, [a, 0, 0]),
        Dtype::Bf16 => (b << 1 | a >> 7, [b & 0x80 | a & 0x7F, 0, 0]),
        Dtype::F32 => (d << 1 | c >> 7, [a, b, d & 0x80 | c & 0x7F]),
    }
}

#[inline(always)]
fn join(dtype: Dtype, exponent: u8, rest: [u8; 3]) -> [u8; 4] {
    let [a, b, c] = rest;
    match dtype {
        Dtype::F16 => [a, exponent, 0, 0],
        Dtype::Bf16 => [exponent << 7 | a & 0x7F, a & 0x80 | exponent >> 1, 0, 0],
        Dtype::F32 => [a, b, exponent << 7 | c & 0x7F, c & 0x80 | exponent >> 1],
    }
}

/// The planes of the rest: one, or three for singles.
#[inline(always)]
fn planes<E: Element>(rest: &mut [u8], values: usize) -> [&mut [u8]; 3] {
    let (first, rest) = rest.split_at_mut_checked(values).unwrap_or_default();
    let (second, third) = rest.split_at_mut_checked(values).unwrap_or_default();
    [first, second, third]
}

impl<E: Element> Work for Split<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let each = if self.part == Part::Exponents { 1 } else { E::BYTES - 1 };
        let values = self.out.len() / each;
        let mut planes = planes::<E>(self.out, values);
        for row in self.source.rows() {
            let (blocks, tail) = E::blocks(row);
            for block in blocks {
                one::<E>(block, self.part, &mut planes, GROUP);
            }
            if !tail.is_empty() {
                one::<E>(&E::tail_block(tail), self.part, &mut planes, tail.len() / E::BYTES);
            }
        }
    }
}

/// Puts one part of the first `count` values of a block to the front of what is left of its planes.
#[inline(always)]
fn one<E: Element>(block: &E::Block, part: Part, planes: &mut [&mut [u8]; 3], count: usize) {
    let mut exponents = [0; GROUP];
    let mut rests = [[0; GROUP]; 3];
    let [low, middle, high] = &mut rests;
    let places = exponents.iter_mut().zip(low.iter_mut().zip(middle.iter_mut()).zip(high.iter_mut()));
    for (value, (exponent, ((a, b), c))) in E::bytes(block).chunks_exact(E::BYTES).zip(places) {
        let value = match *value {
            [a, b, c, d] => [a, b, c, d],
            [a, b] => [a, b, 0, 0],
            _ => [0; 4],
        };
        (*exponent, [*a, *b, *c]) = split(E::DTYPE, value);
    }
    let [first, second, third] = planes;
    if part == Part::Exponents {
        put(first, &exponents, count);
    } else {
        put(first, low, count);
        if E::BYTES == 4 {
            put(second, middle, count);
            put(third, high, count);
        }
    }
}

/// Moves the first `count` bytes of a block to the front of what is left of a plane.
#[inline(always)]
fn put(plane: &mut &mut [u8], block: &[u8; GROUP], count: usize) {
    let (here, behind) = std::mem::take(plane).split_at_mut_checked(count).unwrap_or_default();
    match here.first_chunk_mut() {
        Some(whole) => *whole = *block,
        None => here.iter_mut().zip(block).for_each(|(to, from)| *to = *from),
    }
    *plane = behind;
}

/// From the blob's dtype `E` to the caller's `O`.
pub(crate) struct Join<'a, E, O> {
    pub exponents: Plane<'a>,
    pub rest: &'a [u8],
    pub values: usize,
    pub out: &'a mut [u8],
    pub element: PhantomData<(E, O)>,
}

impl<E: Element, O: Element> Work for Join<'_, E, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for at in (0..self.values).step_by(GROUP) {
            let count = GROUP.min(self.values - at);
            let exponents = self.exponents.block(self.out, at, count);
            let plane = |number: usize| Plane::Stored(self.rest).block(&[], at + number * self.values, count);
            let low = plane(0);
            let (middle, high) = if E::BYTES == 4 { (plane(1), plane(2)) } else { ([0; GROUP], [0; GROUP]) };
            let mut block = E::ZEROS;
            let parts = exponents.iter().zip(low.iter().zip(middle).zip(high));
            for (value, (exponent, ((a, b), c))) in
                E::bytes_mut(&mut block).chunks_exact_mut(E::BYTES).zip(parts)
            {
                let joined = join(E::DTYPE, *exponent, [*a, b, c]);
                value.iter_mut().zip(joined).for_each(|(to, from)| *to = from);
            }
            let place = self.out.get_mut(at * O::BYTES..(at + count) * O::BYTES).unwrap_or_default();
            convert::<E, O, I>(isa, &block, place);
        }
    }
}

/// Up to 64 values into another dtype, or the same bits into the same.
#[inline(always)]
pub(crate) fn convert<E: Element, O: Element, I: Isa>(isa: I, block: &E::Block, place: &mut [u8]) {
    if E::DTYPE == O::DTYPE {
        place.iter_mut().zip(E::bytes(block)).for_each(|(to, from)| *to = *from);
        return;
    }
    let values = isa.quiet(E::load(isa, block));
    match O::blocks_mut(place) {
        ([block], _) => O::store(isa, values, block),
        (_, tail) => O::store_tail(isa, values, tail),
    }
}
