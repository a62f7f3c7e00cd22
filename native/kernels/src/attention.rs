//! Attention of single queries: each session's new token over its own keys and values, many sessions in one call.
//!
//! For each session and key head it goes through the keys once, sixteen tokens at a time and for all query heads that share
//! the head, with the softmax's maximum carried along (Milakov and Gimelshein, 2018). The sixteens begin where the keys
//! do that the query sees, so bits depend on what it sees and on nothing else.
#![allow(unsafe_code)]

use crate::element::{Bf16, Dtype, Element, F16};
use crate::error::KernelError;
use crate::isa::{Isa, LANES, Level, ROUNDER, Work};
use crate::pool;
use crate::view::View;
use std::marker::PhantomData;

/// Query heads that share a pass over the keys, at most: as many sums as registers hold beside what is added to them.
const TOGETHER: usize = 4;

/// Values of keys that pay for another thread: what one reads in about as long as it takes to wake it.
const VALUES_PER_THREAD: usize = 1 << 17;

/// What a cache holds together.
const LINE_BYTES: usize = 64;

/// One session's part in a call.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    /// Keys, `[rows, key heads, room, key width]`: each row of a session is a sequence of its own.
    pub keys: View,
    /// Values, `[rows, key heads, room, value width]`.
    pub values: View,
    /// Where the first row's query stands among the tokens; the other rows' follow.
    pub token: usize,
    /// Where in the room the new token's key and value are put.
    pub at: usize,
    /// The first token in the room that the query sees; the last is the new one.
    pub first: usize,
}

/// What all sessions have in common.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[1, heads, tokens, key width]`.
    pub queries: View,
    /// The new keys, `[1, key heads, tokens, key width]`.
    pub keys: View,
    /// The new values, `[1, key heads, tokens, value width]`.
    pub values: View,
    /// Where the results go, `[1, tokens, heads, value width]`.
    pub out: View,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scores become cap * tanh(score / cap).
    pub soft_cap: Option<f32>,
    /// For each head a further score, of a token without a value.
    pub sinks: Option<&'a [f32]>,
}

/// Puts each session's new key and value into its room and attends, on the best code there is.
///
/// # Errors
///
/// Shapes or dtypes do not fit, or this CPU has no code of its own.
pub fn attend(all: &Attention<'_>, sessions: &[Session], threads: usize) -> Result<(), KernelError> {
    attend_on(Level::best().ok_or(KernelError::NoCode)?, all, sessions, threads)
}

/// The same on a kind of code of the caller's choice.
///
/// # Errors
///
/// As for `attend`.
pub fn attend_on(
    level: Level,
    all: &Attention<'_>,
    sessions: &[Session],
    threads: usize,
) -> Result<(), KernelError> {
    let heads = all.check(sessions)?;
    match all.queries.dtype() {
        Dtype::F32 => share::<f32>(level, all, sessions, heads, threads),
        Dtype::F16 => share::<F16>(level, all, sessions, heads, threads),
        Dtype::Bf16 => share::<Bf16>(level, all, sessions, heads, threads),
    }
    Ok(())
}

fn unfit<T>(what: &'static str) -> Result<T, KernelError> {
    Err(KernelError::Unfit(what))
}

impl Attention<'_> {
    /// The number of key heads, once all is known to fit.
    fn check(&self, sessions: &[Session]) -> Result<usize, KernelError> {
        let [one, heads, tokens, width] = self.queries.shape();
        let [_, key_heads, _, _] = self.keys.shape();
        let [_, _, _, value_width] = self.values.shape();
        if one != 1 || self.keys.shape() != [1, key_heads, tokens, width] {
            return unfit("queries and keys");
        }
        if key_heads == 0 || !heads.is_multiple_of(key_heads) || width == 0 || value_width == 0 {
            return unfit("heads");
        }
        if self.values.shape() != [1, key_heads, tokens, value_width] {
            return unfit("keys and values");
        }
        if self.out.shape() != [1, tokens, heads, value_width] {
            return unfit("the result");
        }
        if self.sinks.is_some_and(|sinks| sinks.len() != heads) {
            return unfit("sinks");
        }
        let dtype = self.queries.dtype();
        if [self.keys, self.values, self.out].iter().any(|view| view.dtype() != dtype) {
            return unfit("dtypes");
        }
        let mut used = Vec::with_capacity(sessions.len());
        let mut taken = vec![false; tokens];
        for session in sessions {
            let [rows, slab_heads, room, _] = session.keys.shape();
            if session.keys.shape() != [rows, key_heads, room, width]
                || session.values.shape() != [rows, slab_heads, room, value_width]
                || session.first > session.at
                || session.at >= room
            {
                return unfit("a session's room");
            }
            if !session.keys.close() || !session.values.close() {
                return unfit("a session's room has gaps");
            }
            if session.keys.dtype() != dtype || session.values.dtype() != dtype {
                return unfit("a session's dtype");
            }
            let end = session.token.checked_add(rows).filter(|end| *end <= tokens);
            let Some(own) = end.and_then(|end| taken.get_mut(session.token..end)) else {
                return unfit("a session's tokens");
            };
            if own.iter().any(|taken| *taken) {
                return unfit("two sessions have one token");
            }
            own.fill(true);
            used.push(session.keys.address());
        }
        used.sort_unstable();
        if used.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return unfit("two sessions have one room");
        }
        Ok(key_heads)
    }
}

fn share<E: Element>(
    level: Level,
    all: &Attention<'_>,
    sessions: &[Session],
    key_heads: usize,
    threads: usize,
) {
    let [_, _, _, width] = all.queries.shape();
    let mut items = Vec::new();
    let mut values = 0;
    for session in sessions {
        let [rows, ..] = session.keys.shape();
        values += rows * key_heads * width * (session.at + 1 - session.first);
        items.extend((0..rows).flat_map(|row| (0..key_heads).map(move |head| Item { session, row, head })));
    }
    let threads = threads.min(values / VALUES_PER_THREAD + 1);
    let each = items.len().div_ceil(threads.max(1) * PARTS_PER_THREAD).max(1);
    let parts: Vec<&[Item<'_>]> = items.chunks(each).collect();
    pool::share(threads, parts.len(), &|part| {
        if let Some(items) = parts.get(part) {
            level.run(Part::<E> { all, items, element: PhantomData });
        }
    });
}

/// Into so many parts a thread's share is cut, so that one that comes late finds something left.
const PARTS_PER_THREAD: usize = 4;

/// One row of a session and one of its key heads.
#[derive(Clone, Copy)]
struct Item<'a> {
    session: &'a Session,
    row: usize,
    head: usize,
}

/// What one thread takes at a time.
struct Part<'a, E> {
    all: &'a Attention<'a>,
    items: &'a [Item<'a>],
    element: PhantomData<E>,
}

impl<E: Element> Work for Part<'_, E> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut scratch = Scratch { queries: Vec::new(), sums: Vec::new() };
        let following = self.items.iter().skip(1).map(Some).chain([None]);
        for (item, next) in self.items.iter().zip(following) {
            let next =
                next.map(|next| next.session.keys.start_of::<E>([next.row, next.head, next.session.first]));
            one_head::<I, E>(isa, self.all, *item, next, &mut scratch);
        }
    }
}

/// What is used again for each head.
struct Scratch<V> {
    /// Of each query the scaled values, sixteen at a time, zeros behind the last.
    queries: Vec<V>,
    /// Of each query the weighted values so far, sixteen at a time.
    sums: Vec<V>,
}

/// A query's way through the keys.
#[derive(Clone, Copy)]
struct Softmax<V> {
    /// The largest score so far.
    peak: f32,
    /// The weights so far, to be added up.
    total: V,
}

#[inline(always)]
fn one_head<I: Isa, E: Element>(
    isa: I,
    all: &Attention<'_>,
    item: Item<'_>,
    next: Option<*const E>,
    scratch: &mut Scratch<I::V>,
) {
    let Item { session, row, head } = item;
    let token = session.token + row;
    let [_, heads, _, width] = all.queries.shape();
    let [_, key_heads, _, value_width] = all.values.shape();
    let (group, seen) = (heads / key_heads, session.at + 1 - session.first);
    // SAFETY: the check has seen to it that no other item has this row of the room.
    unsafe {
        let new = (all.keys.rows::<E>([0, head, token], 1), all.values.rows::<E>([0, head, token], 1));
        session.keys.row_mut::<E>([row, head, session.at]).copy_from_slice(new.0);
        session.values.row_mut::<E>([row, head, session.at]).copy_from_slice(new.1);
    }
    // SAFETY: only this item writes to these rows, and has.
    let keys = unsafe { session.keys.rows::<E>([row, head, session.first], seen) };
    // SAFETY: as above.
    let values = unsafe { session.values.rows::<E>([row, head, session.first], seen) };
    let (steps, value_steps) = (width.div_ceil(LANES), value_width.div_ceil(LANES));
    let mut done = 0;
    while done < group {
        let together = (group - done).min(TOGETHER);
        let first = head * group + done;
        scratch.queries.clear();
        for query in first..first + together {
            // SAFETY: queries are only read.
            let query = unsafe { all.queries.rows::<E>([0, query, token], 1) };
            let scale = isa.splat(all.scale);
            let (whole, rest) = query.as_chunks::<LANES>();
            scratch.queries.extend(whole.iter().map(|chunk| isa.mul(E::load(isa, chunk), scale)));
            if !rest.is_empty() {
                scratch.queries.push(isa.mul(E::load_some(isa, rest), scale));
            }
        }
        scratch.sums.clear();
        scratch.sums.resize(together * value_steps, isa.splat(0.0));
        let sinks = all.sinks.and_then(|sinks| sinks.get(first..first + together));
        let next = next.unwrap_or(keys.as_ptr());
        let heads = Heads { isa, keys, values, next, width, value_width, soft_cap: all.soft_cap, sinks };
        let totals = match together {
            4 => heads.through::<4>(&scratch.queries, steps, &mut scratch.sums, value_steps),
            3 => heads.through::<3>(&scratch.queries, steps, &mut scratch.sums, value_steps),
            2 => heads.through::<2>(&scratch.queries, steps, &mut scratch.sums, value_steps),
            _ => heads.through::<1>(&scratch.queries, steps, &mut scratch.sums, value_steps),
        };
        for ((query, sums), total) in (first..).zip(scratch.sums.chunks_exact(value_steps)).zip(totals) {
            // SAFETY: the check has seen to it that no other item has this token and these heads.
            let out = unsafe { all.out.row_mut::<E>([0, token, query]) };
            for (to, from) in out.chunks_mut(LANES).zip(sums) {
                let from = isa.to_array(isa.div(*from, isa.splat(total)));
                to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(from));
            }
        }
        done += together;
    }
}

/// Some query heads on one key head.
struct Heads<'a, I, E> {
    isa: I,
    keys: &'a [E],
    values: &'a [E],
    /// The keys that come behind these.
    next: *const E,
    width: usize,
    value_width: usize,
    soft_cap: Option<f32>,
    sinks: Option<&'a [f32]>,
}

impl<I: Isa, E: Element> Heads<'_, I, E> {
    /// Adds the weighted values to `sums`; what they are to be divided by.
    #[inline(always)]
    fn through<const G: usize>(
        &self,
        queries: &[I::V],
        steps: usize,
        sums: &mut [I::V],
        value_steps: usize,
    ) -> [f32; TOGETHER] {
        let isa = self.isa;
        let mut softmax = [Softmax { peak: f32::NEG_INFINITY, total: isa.splat(0.0) }; G];
        for (state, sink) in softmax.iter_mut().zip(self.sinks.unwrap_or_default()) {
            // The sink's own weight is 1 as long as it is the largest; it is in one lane.
            let mut first = [0.0; LANES];
            first[0] = 1.0;
            *state = Softmax { peak: *sink, total: isa.load(&first) };
        }
        let keys = self.keys.chunks(LANES * self.width);
        let values = self.values.chunks(LANES * self.value_width);
        for (keys, values) in keys.zip(values) {
            let tokens = keys.len() / self.width;
            let last = std::ptr::eq(keys.as_ptr_range().end, self.keys.as_ptr_range().end);
            fetch(isa, values.as_ptr(), values.len());
            fetch(isa, if last { self.next } else { keys.as_ptr_range().end }, LANES * self.width);
            let mut weights = self.scores::<G>(keys, queries, steps);
            let mut shrink = [isa.splat(1.0); G];
            for ((scores, state), shrink) in weights.iter_mut().zip(&mut softmax).zip(&mut shrink) {
                *shrink = self.weigh(scores, tokens, state);
            }
            self.gather::<G>(values, &weights, &shrink, sums, value_steps);
        }
        let mut totals = [1.0; TOGETHER];
        totals.iter_mut().zip(softmax).for_each(|(total, state)| *total = isa.sum(state.total));
        totals
    }

    /// The scores of up to sixteen tokens for each query; zeros behind the last.
    #[inline(always)]
    fn scores<const G: usize>(&self, keys: &[E], queries: &[I::V], steps: usize) -> [[f32; LANES]; G] {
        let isa = self.isa;
        let mut parts = [[isa.splat(0.0); LANES]; G];
        for (token, key) in keys.chunks_exact(self.width).enumerate() {
            let mut sums = [isa.splat(0.0); G];
            let (whole, rest) = key.as_chunks::<LANES>();
            for (step, chunk) in whole.iter().enumerate() {
                let key = E::load(isa, chunk);
                add_products(isa, key, queries, step, steps, &mut sums);
            }
            if !rest.is_empty() {
                add_products(isa, E::load_some(isa, rest), queries, steps - 1, steps, &mut sums);
            }
            for (parts, sum) in parts.iter_mut().zip(sums) {
                if let Some(part) = parts.get_mut(token) {
                    *part = sum;
                }
            }
        }
        let mut scores = [[0.0; LANES]; G];
        for (scores, parts) in scores.iter_mut().zip(parts) {
            *scores = isa.to_array(isa.sums(parts));
        }
        scores
    }

    /// Scores become weights, zeros behind the last token; what is to be done to all that came before.
    #[inline(always)]
    fn weigh(&self, scores: &mut [f32; LANES], tokens: usize, state: &mut Softmax<I::V>) -> I::V {
        let isa = self.isa;
        if let Some(cap) = self.soft_cap {
            scores.iter_mut().take(tokens).for_each(|score| *score = cap * (*score / cap).tanh());
        }
        let mut peak = state.peak;
        for score in scores.iter().take(tokens) {
            peak = if peak > *score { peak } else { *score };
        }
        let shifted = isa.sub(isa.load(scores), isa.splat(peak));
        *scores = isa.to_array(exp(isa, shifted));
        scores.iter_mut().skip(tokens).for_each(|weight| *weight = 0.0);
        let shrink = exp(isa, isa.sub(isa.splat(state.peak), isa.splat(peak)));
        *state = Softmax { peak, total: isa.fma(state.total, shrink, isa.load(scores)) };
        shrink
    }

    /// sums * shrink + the weighted values.
    #[inline(always)]
    fn gather<const G: usize>(
        &self,
        values: &[E],
        weights: &[[f32; LANES]; G],
        shrink: &[I::V; G],
        sums: &mut [I::V],
        value_steps: usize,
    ) {
        let isa = self.isa;
        for step in 0..value_steps {
            let mut own = [isa.splat(0.0); G];
            for (query, (own, shrink)) in own.iter_mut().zip(shrink).enumerate() {
                if let Some(sum) = sums.get(query * value_steps + step) {
                    *own = isa.mul(*sum, *shrink);
                }
            }
            for (token, value) in values.chunks_exact(self.value_width).enumerate() {
                let (whole, rest) = value.as_chunks::<LANES>();
                let value = match whole.get(step) {
                    Some(chunk) => E::load(isa, chunk),
                    None => E::load_some(isa, rest),
                };
                for (own, weights) in own.iter_mut().zip(weights) {
                    if let Some(weight) = weights.get(token) {
                        *own = isa.fma(isa.splat(*weight), value, *own);
                    }
                }
            }
            for (query, own) in own.iter().enumerate() {
                if let Some(sum) = sums.get_mut(query * value_steps + step) {
                    *sum = *own;
                }
            }
        }
    }
}

/// Have what comes next on its way from memory.
#[inline(always)]
fn fetch<I: Isa, E: Element>(isa: I, from: *const E, count: usize) {
    for line in 0..(count * size_of::<E>()).div_ceil(LINE_BYTES) {
        // Never read from here, so it may lie behind the end.
        isa.prefetch(from.cast::<u8>().wrapping_add(line * LINE_BYTES));
    }
}

/// Adds the products of sixteen of a key's values with those of each query.
#[inline(always)]
fn add_products<I: Isa, const G: usize>(
    isa: I,
    key: I::V,
    queries: &[I::V],
    step: usize,
    steps: usize,
    sums: &mut [I::V; G],
) {
    for (number, sum) in sums.iter_mut().enumerate() {
        if let Some(query) = queries.get(number * steps + step) {
            *sum = isa.fma(key, *query, *sum);
        }
    }
}

/// e^x for x up to 0, to two units in the last place; below -87 it is e^-87, which is nothing beside 1.
#[inline(always)]
fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
    let x = isa.max(isa.splat(-87.0), x);
    let shifted = isa.fma(x, isa.splat(std::f32::consts::LOG2_E), isa.splat(ROUNDER));
    let n = isa.sub(shifted, isa.splat(ROUNDER));
    // ln 2 in two parts, the first with so few bits that n times it is exact.
    let r = isa.fma(n, isa.splat(-0.693_359_4), x);
    let r = isa.fma(n, isa.splat(2.121_944_4e-4), r);
    // The Taylor series; |r| is at most ln 2 / 2.
    let mut p = isa.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = isa.fma(p, r, isa.splat(c));
    }
    isa.mul(p, isa.power_of_two(shifted))
}
