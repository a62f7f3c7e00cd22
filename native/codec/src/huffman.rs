//! A Huffman code as zstd has it (RFC 8878, section 4.2.1): canonical, no code longer than eleven bits, described by weights.

use crate::fse;

/// No code is longer.
const MOST_BITS: usize = 11;
/// More than Huffman's tree can be deep over a block: weights grow like Fibonacci's numbers with the depth.
const MOST_DEPTH: usize = 32;
/// Symbols between two flushes: five codes and what is left of a byte fit 64 bits.
const BATCH: usize = 5;
/// The part of a code's entry that says how long it is; the code itself is in the uppermost bits.
const LENGTH_MASK: u64 = 15;
/// The most bytes of weights that are not packed: a header byte says how many there are.
const MOST_PLAIN_WEIGHTS: usize = 128;
/// A description is no longer.
pub(crate) const MOST_DESCRIPTION_BYTES: usize = 1 + fse::MOST_BYTES;

/// How often each byte occurs in one stream, which has at most 32 KiB.
pub(crate) type Counts = [u16; 256];

/// The code of a block: each symbol's bits, and how many.
pub(crate) struct Code {
    /// The bits, uppermost, and their number, in [`LENGTH_MASK`]; 0 for what does not occur.
    entries: [u64; 256],
    /// Of every symbol up to the last that occurs, exclusive: 0 for what does not occur, else larger for shorter codes.
    weights: [u8; 256],
    last: u8,
    /// How many of the weights up to the last are of each kind.
    shares: [u32; fse::KINDS],
}

impl Code {
    /// None when fewer than two symbols occur.
    #[inline(never)]
    pub fn of(counts: &[u32; 256]) -> Option<Self> {
        // The rarest first.
        let mut order = [0u32; 256];
        let mut used = 0;
        for (symbol, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            *order.get_mut(used)? = count << 8 | symbol as u32;
            used += 1;
        }
        let order = order.get_mut(..used).filter(|order| order.len() > 1)?;
        let last = order.last().map_or(0, |entry| *entry as u8);
        order.sort_unstable();
        let lengths = limited(depths(order)?)?;
        let longest = lengths.iter().rposition(|count| *count > 0)?;

        let (mut bits, mut order) = ([0u8; 256], order.iter());
        let mut next = [0u32; MOST_BITS + 1];
        let mut code = 0;
        // Canonical: the longest codes first, by symbol where they are equally long.
        for (length, (count, next)) in lengths.iter().zip(&mut next).enumerate().rev() {
            *next = code;
            code = (code + count) >> 1;
            for entry in order.by_ref().take(*count as usize) {
                *bits.get_mut((entry & 0xFF) as usize)? = length as u8;
            }
        }
        let (mut entries, mut weights) = ([0; 256], [0; 256]);
        for ((entry, weight), bits) in entries.iter_mut().zip(&mut weights).zip(bits) {
            if bits > 0 {
                let next = next.get_mut(usize::from(bits))?;
                *entry = u64::from(*next) << (64 - bits) | u64::from(bits);
                *weight = longest as u8 + 1 - bits;
                *next += 1;
            }
        }
        // The last one is not described, nor are the lengths that nothing has.
        let mut shares = [0; fse::KINDS];
        *shares.first_mut()? = 256 - used as u32;
        let occurring = lengths.get(1..=longest)?.iter().rev();
        shares.iter_mut().skip(1).zip(occurring).for_each(|(share, count)| *share = *count);
        *shares.first_mut()? -= 255 - u32::from(last);
        *shares.get_mut(usize::from(*weights.get(usize::from(last))?))? -= 1;
        Some(Self { entries, weights, last, shares })
    }

    /// Bits that symbols which occur so often take.
    #[inline(always)]
    pub fn bits(&self, counts: &Counts) -> u32 {
        let lengths = self.entries.iter().map(|entry| (entry & LENGTH_MASK) as u32);
        lengths.zip(counts).map(|(length, count)| length * u32::from(*count)).sum()
    }

    #[inline(always)]
    fn entry(&self, symbol: u8) -> u64 {
        self.entries.get(usize::from(symbol)).copied().unwrap_or_default()
    }

    /// The description of the code at the start of a room; how long it is. None when it cannot be described.
    #[inline(never)]
    pub fn describe(&self, room: &mut [u8; MOST_DESCRIPTION_BYTES]) -> Option<usize> {
        let weights = self.weights.get(..usize::from(self.last))?;
        let [header, room @ ..] = room;
        let packed = fse::pack(weights, self.shares);
        let plain = weights.len().div_ceil(2);
        if let Some((bytes, length)) =
            packed.filter(|(_, length)| *length < plain || weights.len() > MOST_PLAIN_WEIGHTS)
        {
            *header = length as u8;
            *room = bytes;
            return Some(1 + length);
        }
        if weights.len() > MOST_PLAIN_WEIGHTS {
            return None;
        }
        *header = (MOST_PLAIN_WEIGHTS - 1 + weights.len()) as u8;
        for (byte, pair) in room.iter_mut().zip(weights.chunks(2)) {
            *byte = pair.first().unwrap_or(&0) << 4 | pair.get(1).unwrap_or(&0);
        }
        Some(1 + plain)
    }

    /// The codes of these symbols behind each other, the last one lowest, all of it uppermost and spoiled below; and how
    /// many bits they have, in the lowest bits of a number spoiled above.
    #[inline(always)]
    fn joined<const COUNT: usize>(&self, symbols: [u8; COUNT]) -> (u64, u64) {
        symbols.into_iter().rev().map(|symbol| self.entry(symbol)).fold((0, 0), |(bits, count), entry| {
            (bits >> (entry % 64) | entry, u64::wrapping_add(count, entry))
        })
    }

    /// Writes the codes of the symbols, the last one first, and the bit that ends them, to the start of `out`; up to
    /// eight bytes behind them may be written too.
    #[inline(always)]
    pub fn write(&self, symbols: &[u8], out: &mut [u8]) {
        // What waits is in the uppermost `count` bits.
        let (mut waiting, mut count, mut at) = (0u64, 0, 0);
        let (first, batches) = symbols.as_rchunks::<BATCH>();
        for batch in batches.iter().rev() {
            // In two halves, as neither waits for what came before.
            let [a, b, c, d, e] = *batch;
            let ((low, low_count), (high, high_count)) = (self.joined([c, d, e]), self.joined([a, b]));
            let (bits, bit_count) =
                (low >> (high_count % 64) | high, low_count.wrapping_add(high_count) % 64);
            waiting = waiting >> bit_count | bits & !LENGTH_MASK;
            count += bit_count;
            let bytes = (waiting >> (64 - count)).to_le_bytes();
            match out.get_mut(at..at + 8) {
                Some(place) => place.copy_from_slice(&bytes),
                None => put_some(out, at, bytes),
            }
            at += count as usize / 8;
            count %= 8;
        }
        for symbol in first.iter().rev() {
            let entry = self.entry(*symbol);
            waiting = waiting >> (entry % 64) | entry & !LENGTH_MASK;
            count += entry & LENGTH_MASK;
        }
        let ended = waiting >> 1 | 1 << 63;
        put_some(out, at, (ended >> (63 - count)).to_le_bytes());
    }
}

/// As many of the bytes as there is room for.
#[cold]
fn put_some(out: &mut [u8], at: usize, bytes: [u8; 8]) {
    let place = out.get_mut(at..).unwrap_or_default();
    place.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
}

/// How many leaves Huffman's tree has at each depth. `order` holds the counts, ascending, from bit 8 on.
fn depths(order: &[u32]) -> Option<[u32; MOST_DEPTH]> {
    let inner = order.len() - 1;
    let (mut sums, mut parents) = ([0u32; 256], [0u8; 256]);
    let (mut leaves, mut oldest) = (order.iter().map(|entry| entry >> 8).peekable(), 0);
    // Two queues, both ascending: the leaves, and the inner nodes as they were made.
    for node in 0..inner {
        let mut sum = 0;
        for _ in 0..2 {
            let made = if oldest < node { sums.get(oldest).copied() } else { None };
            match leaves.next_if(|leaf| made.is_none_or(|made| *leaf <= made)) {
                Some(leaf) => sum += leaf,
                None => {
                    sum += made?;
                    *parents.get_mut(oldest)? = node as u8;
                    oldest += 1;
                }
            }
        }
        *sums.get_mut(node)? = sum;
    }
    let (mut depths, mut inner_at) = ([0u8; 256], [0u32; MOST_DEPTH]);
    for node in (0..inner).rev() {
        let parent = usize::from(*parents.get(node)?);
        let depth = if node + 1 == inner { 0 } else { depths.get(parent)? + 1 };
        *depths.get_mut(node)? = depth;
        *inner_at.get_mut(usize::from(depth))? += 1;
    }
    let mut leaves_at = [0; MOST_DEPTH];
    let mut places = 1;
    for (leaves, inner) in leaves_at.iter_mut().zip(inner_at) {
        *leaves = places - inner;
        places = 2 * inner;
    }
    Some(leaves_at)
}

/// How many codes of each length there are when none is longer than [`MOST_BITS`]; still all combinations are used.
fn limited(leaves_at: [u32; MOST_DEPTH]) -> Option<[u32; MOST_BITS + 1]> {
    let (short, deep) = leaves_at.split_first_chunk()?;
    let mut lengths: [u32; MOST_BITS + 1] = *short;
    let moved: u32 = deep.iter().sum();
    if moved == 0 {
        return Some(lengths);
    }
    *lengths.last_mut()? += moved;
    let taken: u32 = lengths.iter().rev().enumerate().map(|(above, count)| count << above).sum();
    // Each time one of the longest goes beside a shorter one, which becomes longer by a bit.
    for _ in 1 << MOST_BITS..taken {
        let [shorter @ .., longest] = &mut lengths;
        *longest -= 1;
        let at = shorter.iter().rposition(|count| *count > 0)?;
        *shorter.get_mut(at)? -= 1;
        *lengths.get_mut(at + 1)? += 2;
    }
    Some(lengths)
}
