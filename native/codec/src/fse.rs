//! The weights of a Huffman code in few bytes: tANS with two states that take turns, as RFC 8878 (sections 4.1 and 4.2.1)
//! has it. Only what zstd wants of it: at most twelve different weights, a table of 64 states.

/// Bits of a state; the most that the format allows here.
const STATE_BITS: u32 = 6;
const STATES: usize = 1 << STATE_BITS;
/// How the format writes [`STATE_BITS`]: so much less.
const LEAST_STATE_BITS: u32 = 5;
/// Weights go from 0 to 11.
pub(crate) const KINDS: usize = 12;
/// A description of this length or more could not say how long it is.
pub(crate) const MOST_BYTES: usize = 127;

/// Bytes filled bit by bit, the low ones first.
struct Bits {
    bytes: [u8; MOST_BYTES],
    length: usize,
    waiting: u64,
    count: u32,
}

impl Bits {
    fn new() -> Self {
        Self { bytes: [0; MOST_BYTES], length: 0, waiting: 0, count: 0 }
    }

    /// Takes the low `count` bits of `value`, none else set. What waits has room for 64.
    #[inline(always)]
    fn put(&mut self, value: u32, count: u32) {
        self.waiting |= u64::from(value) << self.count;
        self.count += count;
    }

    /// Moves whole bytes out of the way; None when there is no room.
    #[inline(always)]
    fn flush(&mut self) -> Option<()> {
        let place = self.bytes.get_mut(self.length..)?;
        match place.first_chunk_mut() {
            Some(eight) => *eight = self.waiting.to_le_bytes(),
            None => place.iter_mut().zip(self.waiting.to_le_bytes()).for_each(|(to, byte)| *to = byte),
        }
        self.length += self.count as usize / 8;
        self.waiting >>= self.count & !7;
        self.count &= 7;
        (self.length <= MOST_BYTES).then_some(())
    }

    /// Fills the last byte up with zeros.
    fn align(&mut self) -> Option<()> {
        self.count = self.count.next_multiple_of(8);
        self.flush()
    }
}

/// For every weight, how many states it has and which ones.
struct Table {
    shares: [u32; KINDS],
    /// The states of all weights, one weight behind the other.
    states: [u8; STATES],
    starts: [u32; KINDS],
}

impl Table {
    /// None when one weight is all there is, which the format cannot say.
    #[inline(always)]
    fn of(counts: [u32; KINDS]) -> Option<Self> {
        let shares = shares(counts)?;
        let mut starts = [0; KINDS];
        let mut sum = 0;
        for (start, share) in starts.iter_mut().zip(shares) {
            *start = sum;
            sum += share;
        }
        // The states are dealt in a fixed stride, then belong to their weights in ascending order.
        let mut owners = [0u8; STATES];
        let (mut at, stride) = (0, (STATES >> 1) + (STATES >> 3) + 3);
        for (weight, share) in shares.iter().enumerate() {
            for _ in 0..*share {
                *owners.get_mut(at)? = weight as u8;
                at = (at + stride) % STATES;
            }
        }
        let (mut states, mut next) = ([0; STATES], starts);
        for (state, owner) in owners.iter().enumerate() {
            let place = next.get_mut(usize::from(*owner))?;
            *states.get_mut(*place as usize)? = state as u8;
            *place += 1;
        }
        Some(Self { shares, states, starts })
    }

    #[inline(always)]
    fn state(&self, weight: u8, number: u32) -> Option<u32> {
        let start = self.starts.get(usize::from(weight))?;
        self.states.get((start + number) as usize).map(|state| u32::from(*state) + STATES as u32)
    }

    /// The state from which a reader gets `weight` and, by the bits put here, to `state`.
    #[inline(always)]
    fn step(&self, state: u32, weight: u8, bits: &mut Bits) -> Option<u32> {
        let share = *self.shares.get(usize::from(weight))?;
        let mut count = STATE_BITS - share.checked_ilog2()?;
        if state >> count < share {
            count -= 1;
        }
        bits.put(state & ((1 << count) - 1), count);
        self.state(weight, (state >> count) - share)
    }

    /// The shares, as the format has them.
    fn describe(&self, bits: &mut Bits) -> Option<()> {
        bits.put(STATE_BITS - LEAST_STATE_BITS, 4);
        let (mut left, mut threshold, mut width) = (STATES as u32 + 1, STATES as u32, STATE_BITS + 1);
        let mut shares = self.shares.into_iter().peekable();
        while left > 1 {
            let share = shares.next()?;
            // The smaller of the values that are possible still take a bit less.
            let spare = 2 * threshold - 1 - left;
            let value = share + 1;
            let value = if value >= threshold { value + spare } else { value };
            bits.put(value, if value < spare { width - 1 } else { width });
            left -= share;
            while left < threshold {
                threshold >>= 1;
                width -= 1;
            }
            if share == 0 {
                let mut run = 0;
                while shares.next_if_eq(&0).is_some() {
                    run += 1;
                }
                for _ in 0..run / 3 {
                    bits.put(3, 2);
                }
                bits.put(run % 3, 2);
            }
            bits.flush()?;
        }
        bits.align()
    }
}

/// The states that each weight gets: by how often it occurs, and one at least; None when one weight is all there is.
#[inline(always)]
fn shares(counts: [u32; KINDS]) -> Option<[u32; KINDS]> {
    if counts.iter().filter(|count| **count > 0).count() < 2 {
        return None;
    }
    let (all, states): (u32, _) = (counts.iter().sum(), STATES as u32);
    let share = |count: u32| if count == 0 { 0 } else { ((count * states + all / 2) / all).max(1) };
    let mut shares = counts.map(share);
    let given: u32 = shares.iter().sum();
    // Twelve roundings are small beside the largest share, unless there are hardly any weights.
    let largest = shares.iter_mut().max()?;
    *largest = (*largest + states).checked_sub(given).filter(|share| *share > 0)?;
    Some(shares)
}

/// The weights as a Huffman code's description has them: the shares, then the weights. None when they cannot be said in
/// at most [`MOST_BYTES`] bytes this way. `counts` says how many there are of each kind.
#[inline(always)]
pub(crate) fn pack(weights: &[u8], counts: [u32; KINDS]) -> Option<([u8; MOST_BYTES], usize)> {
    let table = Table::of(counts)?;
    let mut bits = Bits::new();
    table.describe(&mut bits)?;
    // A reader goes from the end to the start, so the last weight is written first. It stops where bits are missing:
    // so each state starts as the one of its weight that wants most bits.
    let (pairs, odd) = weights.as_chunks::<2>();
    let mut pairs = pairs.iter().rev();
    let (mut first, mut second);
    if let [last] = odd {
        let [a, b] = pairs.next()?;
        second = table.state(*b, 0)?;
        first = table.step(table.state(*last, 0)?, *a, &mut bits)?;
    } else {
        let [a, b] = pairs.next()?;
        (first, second) = (table.state(*a, 0)?, table.state(*b, 0)?);
    }
    for [a, b] in pairs {
        second = table.step(second, *b, &mut bits)?;
        first = table.step(first, *a, &mut bits)?;
        bits.flush()?;
    }
    bits.put(second - STATES as u32, STATE_BITS);
    bits.put(first - STATES as u32, STATE_BITS);
    bits.put(1, 1);
    bits.align()?;
    Some((bits.bytes, bits.length))
}
