//! Linear layers for few rows: each weight is read from memory once, and a row's sums are its own.
//!
//! A sum goes over a row's values in steps of sixteen, each lane by itself, and at the end of each block of `BLOCK` values
//! the lanes are added up. So its bits depend on the row and the weights alone, whatever else a tile holds.
#![allow(unsafe_code)]

use crate::element::{Bf16, Dtype, Element, F16};
use crate::error::KernelError;
use crate::isa::{Isa, LANES, Level, Work};
use crate::pool;
use crate::view::View;
use std::marker::PhantomData;
use std::ops::Range;

/// Most rows that are worked on together: with their outputs sixteen sums, which are added up in one go. On CPUs whose
/// registers hold fewer sums it is `Isa::ROWS`.
const ROWS: usize = 8;

/// Outputs that are worked on together.
const OUTPUTS: usize = LANES / ROWS;

/// Values of a row after which the lanes are added up: so much of `ROWS` rows stays in the nearest cache.
const BLOCK: usize = 1024;

/// Outputs whose weights, for a block of values, stay in the next cache while all rows go over them.
const HELD: usize = 32;

/// Weights that pay for another thread.
const WEIGHTS_PER_THREAD: usize = 1 << 16;

/// Into so many parts a thread's share is cut, so that one that comes late finds something left.
const PARTS_PER_THREAD: usize = 4;

/// How far ahead weights are fetched when each is used once: some more than memory takes to deliver.
const AHEAD_BYTES: usize = 8 << 10;

/// What a cache holds together.
const LINE_BYTES: usize = 64;

/// Sixteen values where a cache has them in one line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LANES]);

/// `out = rows · weightsᵀ + bias`, on the best code there is.
///
/// Only for the rows in `runs`, all of them one after the other; the others' results stay what they are.
///
/// `rows` is `[1, 1, rows, inputs]`, `weights` `[1, 1, outputs, inputs]` without gaps, `bias` `[1, 1, 1, outputs]`, `out`
/// `[1, 1, rows, outputs]`, all of one dtype.
///
/// # Errors
///
/// Shapes or dtypes do not fit, or this CPU has no code of its own.
pub fn linear(
    rows: &View,
    weights: &View,
    bias: Option<&View>,
    out: &View,
    runs: &[Range<usize>],
    threads: usize,
) -> Result<(), KernelError> {
    linear_on(Level::best().ok_or(KernelError::NoCode)?, rows, weights, bias, out, runs, threads)
}

/// The same on a kind of code of the caller's choice.
///
/// # Errors
///
/// As for `linear`.
pub fn linear_on(
    level: Level,
    rows: &View,
    weights: &View,
    bias: Option<&View>,
    out: &View,
    runs: &[Range<usize>],
    threads: usize,
) -> Result<(), KernelError> {
    let [_, _, count, inputs] = rows.shape();
    let [_, _, outputs, _] = weights.shape();
    let dtype = weights.dtype();
    if rows.shape() != [1, 1, count, inputs] || weights.shape() != [1, 1, outputs, inputs] || inputs == 0 {
        return Err(KernelError::Unfit("rows and weights"));
    }
    if out.shape() != [1, 1, count, outputs] || bias.is_some_and(|bias| bias.shape() != [1, 1, 1, outputs]) {
        return Err(KernelError::Unfit("the result"));
    }
    if !weights.close() {
        return Err(KernelError::Unfit("the weights have gaps"));
    }
    if rows.dtype() != dtype || out.dtype() != dtype || bias.is_some_and(|bias| bias.dtype() != dtype) {
        return Err(KernelError::Unfit("dtypes"));
    }
    let mut end = 0;
    for run in runs {
        if run.start < end || run.end < run.start || run.end > count {
            return Err(KernelError::Unfit("the runs of rows"));
        }
        end = run.end;
    }
    let given = Given { rows, weights, bias, out, numbers: runs.iter().cloned().flatten().collect() };
    match dtype {
        Dtype::F32 => given.share::<f32>(level, threads),
        Dtype::F16 => given.share::<F16>(level, threads),
        Dtype::Bf16 => given.share::<Bf16>(level, threads),
    }
    Ok(())
}

/// What fits.
struct Given<'a> {
    rows: &'a View,
    weights: &'a View,
    bias: Option<&'a View>,
    out: &'a View,
    /// Which rows.
    numbers: Vec<usize>,
}

impl Given<'_> {
    fn share<E: Element>(&self, level: Level, threads: usize) {
        let [_, _, outputs, inputs] = self.weights.shape();
        let steps = inputs.div_ceil(LANES);
        // The rows as singles, with zeros behind the last value of each: every thread reads them again and again.
        let mut wide = vec![Line([0.0; LANES]); self.numbers.len() * steps];
        for (row, to) in self.numbers.iter().zip(wide.chunks_exact_mut(steps)) {
            // SAFETY: rows are only read.
            let from = unsafe { self.rows.rows::<E>([0, 0, *row], 1) };
            to.iter_mut().flat_map(|line| &mut line.0).zip(from).for_each(|(to, from)| *to = from.widen());
        }
        let threads = threads.min(outputs * inputs / WEIGHTS_PER_THREAD + 1);
        let each = outputs.div_ceil(threads.max(1) * PARTS_PER_THREAD).next_multiple_of(LANES);
        pool::share(threads, outputs.div_ceil(each), &|part| {
            let first = part * each;
            let count = each.min(outputs - first);
            level.run(Part::<E> { given: self, wide: &wide, steps, first, count, element: PhantomData });
        });
    }
}

/// Some neighbouring outputs of all rows.
struct Part<'a, E> {
    given: &'a Given<'a>,
    wide: &'a [Line],
    steps: usize,
    first: usize,
    count: usize,
    element: PhantomData<E>,
}

impl<E: Element> Work for Part<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut sums = vec![[0.0; HELD]; self.given.numbers.len()];
        for first in (self.first..self.first + self.count).step_by(HELD) {
            let outputs = HELD.min(self.first + self.count - first);
            self.sum_up(isa, first, outputs, &mut sums);
            let mut added = [0.0; HELD];
            if let Some(bias) = self.given.bias {
                // SAFETY: the bias is only read.
                let bias = unsafe { bias.rows::<E>([0, 0, 0], 1) };
                added.iter_mut().zip(bias.iter().skip(first)).for_each(|(to, from)| *to = from.widen());
            }
            for (row, sums) in self.given.numbers.iter().zip(&sums) {
                // SAFETY: no other part has these outputs.
                let out = unsafe { self.given.out.stretch_mut::<E>([0, 0, *row], first, outputs) };
                for ((to, sum), bias) in out.iter_mut().zip(sums).zip(added) {
                    *to = E::narrow(sum + bias);
                }
            }
        }
    }
}

impl<E: Element> Part<'_, E> {
    /// The sums of some neighbouring outputs for all rows.
    #[inline(always)]
    fn sum_up<I: Isa>(&self, isa: I, first: usize, outputs: usize, sums: &mut [[f32; HELD]]) {
        let [_, _, _, inputs] = self.given.weights.shape();
        // SAFETY: weights are only read.
        let weights = unsafe { self.given.weights.rows::<E>([0, 0, first], outputs) };
        let goes = sums.len().div_ceil(I::ROWS) * inputs.div_ceil(BLOCK) * outputs.div_ceil(OUTPUTS);
        let ahead = if sums.len() > I::ROWS { size_of_val(weights) } else { AHEAD_BYTES };
        let mut lines = Lines::ahead(weights, ahead, goes);
        for block in (0..inputs).step_by(BLOCK) {
            let end = inputs.min(block + BLOCK);
            let steps = block / LANES..end.div_ceil(LANES);
            for (number, sums) in sums.chunks_mut(I::ROWS).enumerate() {
                let mut rows: [&[Line]; ROWS] = [&[]; ROWS];
                for (place, row) in rows.iter_mut().zip(number * I::ROWS..number * I::ROWS + sums.len()) {
                    let from = row * self.steps;
                    *place = self.wide.get(from + steps.start..from + steps.end).unwrap_or_default();
                }
                for output in (0..outputs).step_by(OUTPUTS) {
                    lines.some(isa);
                    let mut pair: [&[E]; OUTPUTS] = [&[]; OUTPUTS];
                    for (number, place) in pair.iter_mut().enumerate() {
                        // What is missing at the end repeats the last, and is not stored.
                        let from = (output + number).min(outputs - 1) * inputs;
                        *place = weights.get(from + block..from + end).unwrap_or_default();
                    }
                    let new = match (sums.len(), rows) {
                        (8, rows) => tile::<I, E, 8>(isa, pair, rows),
                        (7, [a, b, c, d, e, f, g, _]) => tile::<I, E, 7>(isa, pair, [a, b, c, d, e, f, g]),
                        (6, [a, b, c, d, e, f, ..]) => tile::<I, E, 6>(isa, pair, [a, b, c, d, e, f]),
                        (5, [a, b, c, d, e, ..]) => tile::<I, E, 5>(isa, pair, [a, b, c, d, e]),
                        (4, [a, b, c, d, ..]) => tile::<I, E, 4>(isa, pair, [a, b, c, d]),
                        (3, [a, b, c, ..]) => tile::<I, E, 3>(isa, pair, [a, b, c]),
                        (2, [a, b, ..]) => tile::<I, E, 2>(isa, pair, [a, b]),
                        (_, [a, ..]) => tile::<I, E, 1>(isa, pair, [a]),
                    };
                    for (sums, new) in sums.iter_mut().zip(new.as_chunks::<OUTPUTS>().0) {
                        for (sum, new) in sums.iter_mut().skip(output).zip(new) {
                            *sum = if block == 0 { *new } else { *sum + new };
                        }
                    }
                }
            }
        }
    }
}

/// The products of some rows with neighbouring outputs' weights: the sums of each row's outputs, row by row.
#[inline(always)]
fn tile<I: Isa, E: Element, const R: usize>(
    isa: I,
    weights: [&[E]; OUTPUTS],
    rows: [&[Line]; R],
) -> [f32; LANES] {
    assert!(weights.iter().all(|weights| rows.iter().all(|row| weights.len().div_ceil(LANES) <= row.len())));
    let mut sums = [[isa.splat(0.0); OUTPUTS]; R];
    let [(a, a_rest), (b, b_rest)] = weights.map(|row| row.as_chunks::<LANES>());
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        add_products(isa, [E::load(isa, a), E::load(isa, b)], &rows, step, &mut sums);
    }
    if !a_rest.is_empty() {
        let weights = [E::load_some(isa, a_rest), E::load_some(isa, b_rest)];
        add_products(isa, weights, &rows, a.len(), &mut sums);
    }
    let mut all = [isa.splat(0.0); LANES];
    all.iter_mut().zip(sums.as_flattened()).for_each(|(to, from)| *to = *from);
    isa.to_array(isa.sums(all))
}

#[inline(always)]
fn add_products<I: Isa, const R: usize>(
    isa: I,
    weights: [I::V; OUTPUTS],
    rows: &[&[Line]; R],
    step: usize,
    sums: &mut [[I::V; OUTPUTS]; R],
) {
    for (row, sums) in rows.iter().zip(sums) {
        // SAFETY: `tile` has checked that the rows have as many steps as the weights, which bound `step`.
        let row = isa.load(&unsafe { row.get_unchecked(step) }.0);
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = isa.fma(weight, row, *sum);
        }
    }
}

/// The weights that come next, fetched a few at a time while these are worked on.
struct Lines {
    at: *const u8,
    left: usize,
    each: usize,
}

impl Lines {
    /// As many bytes as `weights` has, so far ahead of them, in so many goes.
    #[inline(always)]
    fn ahead<E>(weights: &[E], ahead: usize, goes: usize) -> Self {
        let lines = size_of_val(weights).div_ceil(LINE_BYTES);
        let at = weights.as_ptr().cast::<u8>().wrapping_add(ahead);
        Self { at, left: lines, each: lines.div_ceil(goes.max(1)) }
    }

    #[inline(always)]
    fn some<I: Isa>(&mut self, isa: I) {
        let now = self.each.min(self.left);
        for _ in 0..now {
            isa.prefetch(self.at);
            // Never read from, so it may lie behind the end.
            self.at = self.at.wrapping_add(LINE_BYTES);
        }
        self.left -= now;
    }
}
