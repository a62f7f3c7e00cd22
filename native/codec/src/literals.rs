//! A plane of bytes as a zstd frame (RFC 8878) whose blocks are nothing but literals under a Huffman code of their own.
//!
//! Exponents and 8-bit floats hold no strings worth looking for. zstd can be told so, but takes longer over it: it is made
//! for larger messages than one token's, and for more different bytes than the few dozen that exponents are.

use crate::huffman::{Code, Counts, MOST_DESCRIPTION_BYTES};
use crate::isa::{Isa, Work};

/// The magic; no content size, no checksum, no dictionary; a window of 128 KiB.
const FRAME_HEADER: [u8; 6] = [0x28, 0xB5, 0x2F, 0xFD, 0, 7 << 3];
/// No block is larger.
const MOST_BLOCK_BYTES: usize = 128 << 10;
/// Below this a block is stored: four streams would hardly have anything in them.
const LEAST_CODED_BYTES: usize = 256;
const STREAMS: usize = 4;

enum Kind {
    Stored = 0,
    Repeated = 1,
    Coded = 2,
}

/// Compresses `plane` into `out`.
pub(crate) struct Pack<'a> {
    pub plane: &'a [u8],
    pub out: &'a mut [u8],
}

impl Work for Pack<'_> {
    /// How many bytes it took, None when there was not room enough.
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Option<usize> {
        pack(self.plane, self.out)
    }
}

#[inline(always)]
fn pack(plane: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut out = Out { bytes: out, at: 0 };
    out.put(&FRAME_HEADER)?;
    let blocks = plane.len().div_ceil(MOST_BLOCK_BYTES);
    let each = plane.len().div_ceil(blocks.max(1)).max(1);
    for (number, block) in plane.chunks(each).enumerate() {
        write_block(block, number + 1 == blocks, &mut out)?;
    }
    Some(out.at)
}

/// A cursor in the output.
struct Out<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.bytes.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    fn block_header(&mut self, kind: Kind, bytes: usize, last: bool) -> Option<()> {
        let [a, b, c, _] = (u32::from(last) | (kind as u32) << 1 | (bytes as u32) << 3).to_le_bytes();
        self.put(&[a, b, c])
    }
}

#[inline(always)]
fn write_block(block: &[u8], last: bool, out: &mut Out<'_>) -> Option<()> {
    if block.len() >= LEAST_CODED_BYTES {
        let quarters = quarters(block);
        let counts = counted(quarters);
        let mut whole = [0u32; 256];
        for counts in &counts {
            whole.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u32::from(*count));
        }
        if let Some(symbol) = whole.iter().position(|count| *count as usize == block.len()) {
            out.block_header(Kind::Repeated, block.len(), last)?;
            return out.put(&[symbol as u8]);
        }
        if let Some(code) = Code::of(&whole)
            && let Some(coded) = Coded::of(code, quarters, &counts, block.len())
        {
            return coded.write(last, out);
        }
    }
    out.block_header(Kind::Stored, block.len(), last)?;
    out.put(block)
}

/// The four streams of a block; the last may be a little shorter.
fn quarters(block: &[u8]) -> [&[u8]; STREAMS] {
    let mut quarters = block.chunks(block.len().div_ceil(STREAMS));
    std::array::from_fn(|_| quarters.next().unwrap_or_default())
}

/// How often each byte occurs in each quarter. Eight pieces are counted at once: a count that was just written is slow to
/// read, and the same byte often comes again.
#[inline(always)]
fn counted(quarters: [&[u8]; STREAMS]) -> [Counts; STREAMS] {
    let (mut counts, mut others) = ([[0u16; 256]; STREAMS], [[0u16; 256]; STREAMS]);
    let half = quarters.map(<[u8]>::len).into_iter().min().unwrap_or(0) / 2;
    let [(a, i), (b, j), (c, k), (d, l)] = quarters.map(|quarter| quarter.split_at(half));
    let [(e, i), (f, j), (g, k), (h, l)] = [i, j, k, l].map(|rest| rest.split_at(half));
    {
        let ([p, q, r, s], [t, u, v, w]) = (&mut counts, &mut others);
        for (((((((a, b), c), d), e), f), g), h) in a.iter().zip(b).zip(c).zip(d).zip(e).zip(f).zip(g).zip(h)
        {
            count(p, *a);
            count(q, *b);
            count(r, *c);
            count(s, *d);
            count(t, *e);
            count(u, *f);
            count(v, *g);
            count(w, *h);
        }
    }
    for (counts, (others, rest)) in counts.iter_mut().zip(others.iter().zip([i, j, k, l])) {
        counts.iter_mut().zip(others).for_each(|(count, other)| *count += other);
        rest.iter().for_each(|symbol| count(counts, *symbol));
    }
    counts
}

#[inline(always)]
fn count(counts: &mut Counts, symbol: u8) {
    if let Some(count) = counts.get_mut(usize::from(symbol)) {
        *count += 1;
    }
}

/// A block that is worth its code, and the lengths of all that is in it.
struct Coded<'a> {
    code: Code,
    description: [u8; MOST_DESCRIPTION_BYTES],
    description_bytes: usize,
    quarters: [&'a [u8]; STREAMS],
    stream_bytes: [usize; STREAMS],
    plain_bytes: usize,
}

impl<'a> Coded<'a> {
    /// None when it is not worth it.
    #[inline(always)]
    fn of(
        code: Code,
        quarters: [&'a [u8]; STREAMS],
        counts: &[Counts; STREAMS],
        plain_bytes: usize,
    ) -> Option<Self> {
        let stream_bytes = counts.each_ref().map(|counts| code.bits(counts) as usize / 8 + 1);
        let mut description = [0; MOST_DESCRIPTION_BYTES];
        let description_bytes = code.describe(&mut description)?;
        let coded = Self { code, description, description_bytes, quarters, stream_bytes, plain_bytes };
        (coded.block_bytes() < plain_bytes).then_some(coded)
    }

    fn literal_bytes(&self) -> usize {
        self.description_bytes + 2 * (STREAMS - 1) + self.stream_bytes.iter().sum::<usize>()
    }

    /// Bits of each of the two lengths in front of the literals.
    fn length_bits(&self) -> usize {
        if self.plain_bytes < 1 << 10 {
            10
        } else if self.plain_bytes < 1 << 14 {
            14
        } else {
            18
        }
    }

    /// The literals, their header, and one byte that says that there are no sequences.
    fn block_bytes(&self) -> usize {
        self.literal_bytes() + (4 + 2 * self.length_bits()) / 8 + 1
    }

    #[inline(always)]
    fn write(&self, last: bool, out: &mut Out<'_>) -> Option<()> {
        out.block_header(Kind::Coded, self.block_bytes(), last)?;
        // "Compressed literals" in four streams, then the two lengths.
        let bits = self.length_bits();
        let format = (bits as u64 - 6) / 4;
        let lengths = self.plain_bytes as u64 | (self.literal_bytes() as u64) << bits;
        let header = 2 | format << 2 | lengths << 4;
        out.put(header.to_le_bytes().get(..(4 + 2 * bits) / 8)?)?;
        out.put(self.description.get(..self.description_bytes)?)?;
        for bytes in self.stream_bytes.iter().take(STREAMS - 1) {
            out.put(&(*bytes as u16).to_le_bytes())?;
        }
        for (quarter, bytes) in self.quarters.iter().zip(self.stream_bytes) {
            let room = out.bytes.get_mut(out.at..).filter(|room| room.len() >= bytes)?;
            self.code.write(quarter, room);
            out.at += bytes;
        }
        out.put(&[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Level;
    use crate::squeeze::unpack;
    use proptest::prelude::*;

    fn back(plane: &[u8]) -> usize {
        let mut packed = vec![0xEE; plane.len() + 64];
        let length = pack(plane, &mut packed).unwrap();
        for level in Level::available() {
            let mut other = vec![0xEE; packed.len()];
            assert_eq!(level.run(Pack { plane, out: &mut other }), Some(length));
            assert!(other == packed);
        }
        assert!(packed[length..].iter().skip(8).all(|byte| *byte == 0xEE));
        let mut out = vec![0x55; plane.len()];
        unpack(&packed[..length], &mut out).unwrap();
        assert!(out == plane, "{} bytes came back otherwise", plane.len());
        length
    }

    /// Bytes round `middle`, each step away from it as likely as `odds` percent of the one before.
    fn falling(bytes: usize, middle: u8, odds: u64, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let one = |_| {
            let mut steps = 0;
            while steps < 255 && random() % 100 < odds {
                steps += 1;
            }
            middle.wrapping_add(if random() % 2 == 0 { steps } else { steps.wrapping_neg() })
        };
        (0..bytes).map(one).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn zstd_reads_it(bytes in 1usize..9000, middle: u8, odds in 0u64..100, seed: u64) {
            back(&falling(bytes, middle, odds, seed));
        }
    }

    #[test]
    fn zstd_reads_planes_of_every_size_class() {
        for bytes in [255, 256, 257, 1023, 1024, 16_383, 16_384, 131_071, 131_072, 131_073, 400_001] {
            for odds in [0, 3, 50, 90, 99] {
                back(&falling(bytes, 126, odds, bytes as u64));
            }
            back(&vec![7; bytes]);
            back(&(0..bytes).map(|at| (at % 256) as u8).collect::<Vec<_>>());
            back(&(0..bytes).map(|at| (at % 2 * 255) as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_code_is_longer_than_it_may_be() {
        // Counts like Fibonacci's numbers make the deepest tree.
        let (mut plane, mut counts) = (Vec::new(), (1usize, 1usize));
        for symbol in 100..122u8 {
            plane.extend(std::iter::repeat_n(symbol, counts.0));
            counts = (counts.1, counts.0 + counts.1);
        }
        assert!(plane.len() < MOST_BLOCK_BYTES);
        let mixed: Vec<u8> = (0..plane.len()).map(|at| plane[at * 7919 % plane.len()]).collect();
        back(&mixed);
    }

    #[test]
    fn is_as_short_as_the_code_allows() {
        let plane = falling(20_000, 124, 45, 9);
        let mut counts = [0f64; 256];
        plane.iter().for_each(|byte| counts[usize::from(*byte)] += 1.0);
        let all = plane.len() as f64;
        let bits: f64 =
            counts.iter().filter(|count| **count > 0.0).map(|count| count * (all / count).log2()).sum();
        assert!((back(&plane) as f64) < bits / 8.0 * 1.03 + 60.0);
    }

    #[test]
    fn gives_up_where_there_is_no_room() {
        let plane = falling(2000, 124, 45, 9);
        let length = back(&plane);
        for room in 0..length {
            assert_eq!(pack(&plane, &mut vec![0; room]), None);
        }
        assert_eq!(pack(&plane, &mut vec![0; length]), Some(length));
    }
}
