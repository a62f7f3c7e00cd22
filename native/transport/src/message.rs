//! Whole messages: the frames of docs/PROTOCOL.md, read and written piece by piece. Knows no stream.
//!
//! A prefix of 16 bytes (magic, version, two lengths, CRC-32C), a header, and, when there is a body, zeros up to a
//! multiple of 64 and the body. Both ends of this file can be left at any byte and taken up again.

use crate::checksum::Checksum;
use crate::error::Error;
use std::task::{Poll, ready};

/// The longest header that any peer may send.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
/// The longest body that any peer may send.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// Where a body may start: a cache line and the widest vector register.
pub const ALIGNMENT_BYTES: usize = 64;

const MAGIC: &[u8] = b"SWN";
const VERSION: u8 = 1;
const PREFIX_BYTES: usize = 16;
const CHECKED_PREFIX_BYTES: usize = 12;

/// A length that a peer claims reserves this much; beyond it, memory grows by [`GROWTH`] as bytes come.
const FIRST_BYTES: usize = 1 << 20;
const GROWTH: usize = 4;

/// Up to this size header and body are joined, as one packet instead of two is worth more than the copy.
const JOIN_BYTES: usize = 64 << 10;

/// A message that has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header's bytes.
    pub header: Vec<u8>,
    /// Its body; empty when it was read into the caller's own memory.
    pub body: Body,
    /// How long the body is, wherever it lies.
    pub body_bytes: usize,
}

impl Message {
    /// The same message, its body in `memory` if it is not there already.
    ///
    /// # Errors
    ///
    /// [`Error::BadMessage`] when it does not fit.
    pub(crate) fn moved_into(mut self, memory: &mut [u8]) -> Result<Self, Error> {
        let body = std::mem::take(&mut self.body);
        let (bytes, room) = (body.bytes(), memory.len());
        memory.get_mut(..bytes.len()).ok_or_else(|| too_long(bytes.len(), room))?.copy_from_slice(bytes);
        Ok(self)
    }
}

/// The bytes of a body, starting at a multiple of 64.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Body {
    memory: Vec<u8>,
    start: usize,
}

impl Body {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..).unwrap_or_default()
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
struct Lengths {
    header: usize,
    body_start: usize,
    body: usize,
    checksum: u32,
}

/// Reads one message after the other.
#[derive(Debug, Default)]
pub struct Reader {
    prefix: [u8; PREFIX_BYTES],
    lengths: Option<Lengths>,
    /// Bytes of this message so far.
    have: usize,
    checksum: Checksum,
    /// The header and the padding, from behind the prefix.
    head: Vec<u8>,
    body: Body,
    /// The body goes, in part already, into memory of the caller's.
    lent: bool,
    broken: Option<Error>,
}

impl Reader {
    /// Whether a message has begun and not ended.
    pub fn in_message(&self) -> bool {
        self.have > 0
    }

    /// Read on until the message is whole; `None` when the stream ends before one begins.
    ///
    /// With `into` the body is written there and must fit. When a call with `into` is pending, the next one must
    /// bring the same memory; [`Self::give_up`] says that there will be none.
    ///
    /// # Errors
    ///
    /// [`Error::BadMessage`], for ever after, when what comes is no message; [`Error::Lost`] when the stream ends in
    /// the middle of one; whatever `read` fails with.
    pub fn poll(
        &mut self,
        max_body_bytes: usize,
        mut into: Option<&mut [u8]>,
        mut read: impl FnMut(&mut [u8]) -> Poll<Result<usize, Error>>,
    ) -> Poll<Result<Option<Message>, Error>> {
        if let Some(error) = &self.broken {
            return Poll::Ready(Err(error.clone()));
        }
        let limit = into.as_ref().map_or(max_body_bytes, |memory| memory.len()).min(MAX_BODY_BYTES);
        let done = self.poll_parts(limit, &mut into, &mut read);
        if let Poll::Ready(Err(error)) = &done {
            self.broken = Some(error.clone());
            (self.head, self.body) = Default::default();
        }
        done
    }

    /// The caller's memory is gone. When some of a body lies in it already, the stream is of no use any more.
    pub fn give_up(&mut self) {
        if self.lent {
            self.broken = Some(Error::BadMessage("a message was given up in its middle".into()));
        }
    }

    fn poll_parts(
        &mut self,
        limit: usize,
        into: &mut Option<&mut [u8]>,
        read: &mut impl FnMut(&mut [u8]) -> Poll<Result<usize, Error>>,
    ) -> Poll<Result<Option<Message>, Error>> {
        while self.have < PREFIX_BYTES {
            let rest = self.prefix.get_mut(self.have..).unwrap_or_default();
            match ready!(read(rest))? {
                0 if self.have == 0 => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(early())),
                some => self.have += some,
            }
        }
        let lengths = match self.lengths {
            Some(lengths) => lengths,
            None => {
                let lengths = read_prefix(&self.prefix, limit)?;
                self.checksum.add(self.prefix.get(..CHECKED_PREFIX_BYTES).unwrap_or_default());
                self.head = vec![0; lengths.body_start - PREFIX_BYTES];
                *self.lengths.insert(lengths)
            }
        };
        while self.have < lengths.body_start {
            let rest = self.head.get_mut(self.have - PREFIX_BYTES..).unwrap_or_default();
            let some = ready!(read(rest))?;
            self.checksum.add(rest.get(..some).unwrap_or_default());
            self.came(some)?;
        }
        self.lent = self.lent || into.is_some() && self.body.memory.is_empty();
        let end = lengths.body_start + lengths.body;
        while self.have < end {
            let at = self.have - lengths.body_start;
            let rest = match (self.lent, into.as_mut()) {
                (false, _) => self.body.room(at, lengths.body),
                (true, memory) => match memory.and_then(|memory| memory.get_mut(at..lengths.body)) {
                    Some(rest) => rest,
                    None => return Poll::Ready(Err(Error::Misuse("the memory for the body is missing"))),
                },
            };
            let some = ready!(read(rest))?;
            self.checksum.add(rest.get(..some).unwrap_or_default());
            self.came(some)?;
        }
        if self.checksum.value() != lengths.checksum {
            return Poll::Ready(Err(bad("A frame's checksum does not match its bytes.")));
        }
        let mut header = std::mem::take(&mut self.head);
        if header.get(lengths.header..).is_some_and(|padding| padding.iter().any(|&byte| byte != 0)) {
            return Poll::Ready(Err(bad("A frame's padding is not zero.")));
        }
        header.truncate(lengths.header);
        let mut body = std::mem::take(&mut self.body);
        if !self.lent && lengths.body == 0 {
            body = Body::default();
        }
        *self = Self::default();
        Poll::Ready(Ok(Some(Message { header, body, body_bytes: lengths.body })))
    }

    fn came(&mut self, some: usize) -> Result<(), Error> {
        self.have += some;
        if some == 0 { Err(early()) } else { Ok(()) }
    }
}

impl Body {
    /// Where the bytes from `at` on go, of `total` in the end; at least one byte while there are any to come.
    fn room(&mut self, at: usize, total: usize) -> &mut [u8] {
        let held = self.bytes().len();
        if at >= held {
            let next = held.saturating_mul(GROWTH).max(FIRST_BYTES).min(total);
            let mut memory = vec![0; next + ALIGNMENT_BYTES];
            let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES).min(ALIGNMENT_BYTES);
            memory.truncate(start + next);
            if let Some(old) = memory.get_mut(start..start + held) {
                old.copy_from_slice(self.bytes());
            }
            *self = Self { memory, start };
        }
        self.bytes_mut().get_mut(at..).unwrap_or_default()
    }
}

fn read_prefix(prefix: &[u8; PREFIX_BYTES], limit: usize) -> Result<Lengths, Error> {
    let [m0, m1, m2, version, rest @ ..] = prefix;
    let word = |at: usize| {
        let bytes = rest.get(at..at + 4).and_then(|word| word.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let (header, body, checksum) = (word(0) as usize, word(4) as usize, word(8));
    if [*m0, *m1, *m2] != MAGIC {
        return Err(bad("The bytes are not a swarmnode frame."));
    }
    if *version != VERSION {
        let what = format!("The peer speaks frame version {version}, we speak version {VERSION}.");
        return Err(Error::BadMessage(what));
    }
    if !(1..=MAX_HEADER_BYTES).contains(&header) {
        let what = format!("A frame claims a header of {header} bytes; it may have 1 to {MAX_HEADER_BYTES}.");
        return Err(Error::BadMessage(what));
    }
    if body > limit {
        return Err(too_long(body, limit));
    }
    Ok(Lengths { header, body_start: body_start(header, body), body, checksum })
}

fn body_start(header: usize, body: usize) -> usize {
    let end = PREFIX_BYTES + header;
    if body == 0 { end } else { end.next_multiple_of(ALIGNMENT_BYTES) }
}

fn too_long(body: usize, limit: usize) -> Error {
    Error::BadMessage(format!("A frame claims a body of {body} bytes; at most {limit} are taken here."))
}

fn bad(what: &str) -> Error {
    Error::BadMessage(what.into())
}

fn early() -> Error {
    Error::Lost("the other end finished in the middle of a message".into())
}

/// Writes one message. The body's memory comes with each call, always the same.
#[derive(Debug)]
pub struct Writer {
    head: Vec<u8>,
    body_bytes: usize,
    /// Bytes that are out.
    sent: usize,
}

impl Writer {
    /// A message from these bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] when no peer would take it.
    pub fn new(header: &[u8], body: &[u8]) -> Result<Self, Error> {
        let too_long = Error::Misuse("a message's header or body is over the limits");
        if header.is_empty() || header.len() > MAX_HEADER_BYTES || body.len() > MAX_BODY_BYTES {
            return Err(too_long);
        }
        let length = |bytes: usize| u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| too_long.clone());
        let joined = body.len() <= JOIN_BYTES;
        let start = body_start(header.len(), body.len());
        let mut head = Vec::with_capacity(start + if joined { body.len() } else { 0 });
        head.extend_from_slice(MAGIC);
        head.push(VERSION);
        head.extend_from_slice(&length(header.len())?);
        head.extend_from_slice(&length(body.len())?);
        let mut checksum = Checksum::default();
        checksum.add(&head);
        head.extend_from_slice(&[0; PREFIX_BYTES - CHECKED_PREFIX_BYTES]);
        head.extend_from_slice(header);
        head.resize(start, 0);
        checksum.add(head.get(PREFIX_BYTES..).unwrap_or_default());
        checksum.add(body);
        if let Some(place) = head.get_mut(CHECKED_PREFIX_BYTES..PREFIX_BYTES) {
            place.copy_from_slice(&checksum.value().to_le_bytes());
        }
        if joined {
            head.extend_from_slice(body);
        }
        Ok(Self { head, body_bytes: if joined { 0 } else { body.len() }, sent: 0 })
    }

    /// Bytes that are not out yet.
    pub fn left(&self) -> usize {
        self.head.len() + self.body_bytes - self.sent
    }

    /// Whether some of it is out.
    pub fn begun(&self) -> bool {
        self.sent > 0
    }

    /// Write on until all is out.
    ///
    /// # Errors
    ///
    /// Whatever `write` fails with; [`Error::Misuse`] when the body is another.
    pub fn poll(
        &mut self,
        body: &[u8],
        mut write: impl FnMut(&[u8]) -> Poll<Result<usize, Error>>,
    ) -> Poll<Result<(), Error>> {
        while self.left() > 0 {
            let rest = match self.sent.checked_sub(self.head.len()) {
                None => self.head.get(self.sent..),
                Some(at) => body.get(at..self.body_bytes),
            };
            let Some(rest) = rest else { return Poll::Ready(Err(Error::Misuse("the body has changed"))) };
            self.sent += ready!(write(rest))?;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(header: &[u8], body: &[u8]) -> Vec<u8> {
        let (mut writer, mut out) = (Writer::new(header, body).unwrap(), Vec::new());
        let done = writer.poll(body, |piece| {
            out.extend_from_slice(piece);
            Poll::Ready(Ok(piece.len()))
        });
        assert!(matches!(done, Poll::Ready(Ok(()))) && writer.left() == 0);
        out
    }

    /// A stream that gives its bytes in pieces, is pending between them, and then ends.
    struct Source<'a> {
        bytes: &'a [u8],
        pieces: Vec<usize>,
        turn: usize,
    }

    impl Source<'_> {
        fn read(&mut self, into: &mut [u8]) -> Poll<Result<usize, Error>> {
            self.turn += 1;
            if self.turn.is_multiple_of(2) {
                return Poll::Pending;
            }
            let piece = self.pieces[self.turn / 2 % self.pieces.len()].max(1);
            let some = piece.min(into.len()).min(self.bytes.len());
            into[..some].copy_from_slice(&self.bytes[..some]);
            self.bytes = &self.bytes[some..];
            Poll::Ready(Ok(some))
        }
    }

    fn next(reader: &mut Reader, source: &mut Source<'_>, max: usize) -> Result<Option<Message>, Error> {
        loop {
            if let Poll::Ready(done) = reader.poll(max, None, |into| source.read(into)) {
                return done;
            }
        }
    }

    #[test]
    fn is_golden() {
        let whole = encode(b"\x81\xa1a\x01", b"tensor");
        assert_eq!(&whole[..12], b"SWN\x01\x04\0\0\0\x06\0\0\0");
        assert_eq!((whole.len(), &whole[64..]), (70, &b"tensor"[..]));
        assert_eq!(encode(b"\x80", b"").len(), 17);
    }

    #[test]
    fn a_claim_reserves_little() {
        let mut head = encode(b"\x80", &vec![7; JOIN_BYTES + 1])[..65].to_vec();
        head[8..12].copy_from_slice(&(64u32 << 20).to_le_bytes());
        let mut reader = Reader::default();
        let mut source = Source { bytes: &head, pieces: vec![1000], turn: 0 };
        while !source.bytes.is_empty() {
            assert!(reader.poll(MAX_BODY_BYTES, None, |into| source.read(into)).is_pending());
        }
        assert_eq!(reader.body.bytes().len(), FIRST_BYTES);
        assert!(matches!(next(&mut reader, &mut source, MAX_BODY_BYTES), Err(Error::Lost(_))));
    }

    #[test]
    fn a_body_given_up_in_the_callers_memory_breaks_the_reader() {
        let whole = encode(b"\x80", &[7; 100]);
        for cut in [10, 64, 65] {
            let mut reader = Reader::default();
            let mut source = Source { bytes: &whole[..cut], pieces: vec![1000], turn: 0 };
            let mut memory = [0; 100];
            while !source.bytes.is_empty() {
                assert!(reader.poll(0, Some(&mut memory), |into| source.read(into)).is_pending());
            }
            reader.give_up();
            source.bytes = &whole[cut..];
            let after = next(&mut reader, &mut source, 100);
            assert_eq!(after.is_ok(), cut < 64, "{after:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..200), 0usize..200_000), 1..4),
            pieces in prop::collection::vec(1usize..100_000, 1..8),
            lend: bool,
        ) {
            let bodies: Vec<Vec<u8>> = parts.iter().map(|&(_, size)| (0..size).map(|i| (i * 31) as u8).collect()).collect();
            let whole: Vec<u8> = parts.iter().zip(&bodies).flat_map(|((header, _), body)| encode(header, body)).collect();
            let (mut reader, mut source) = (Reader::default(), Source { bytes: &whole, pieces, turn: 0 });
            for ((header, _), body) in parts.iter().zip(&bodies) {
                let mut memory = vec![0; body.len()];
                let message = loop {
                    let into = lend.then_some(memory.as_mut_slice());
                    if let Poll::Ready(done) = reader.poll(MAX_BODY_BYTES, into, |into| source.read(into)) {
                        break done.unwrap().unwrap();
                    }
                };
                prop_assert_eq!(&message.header, header);
                prop_assert_eq!(message.body_bytes, body.len());
                prop_assert_eq!(if lend { &memory } else { message.body.bytes() }, body);
                prop_assert!(message.body.bytes().as_ptr().align_offset(ALIGNMENT_BYTES) == 0 || body.is_empty() || lend);
            }
            prop_assert_eq!(next(&mut reader, &mut source, 0), Ok(None));
        }

        #[test]
        fn a_changed_or_cut_message_is_refused(body in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, bit in 0u32..8) {
            let whole = encode(b"\x81\xa1a\x01", &body);
            let at = at.index(whole.len());
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            let mut source = Source { bytes: &changed, pieces: vec![1000], turn: 0 };
            let mut reader = Reader::default();
            prop_assert!(next(&mut reader, &mut source, 1000).is_err());
            prop_assert!(next(&mut reader, &mut source, 1000).is_err(), "it stays broken");
            let mut source = Source { bytes: &whole[..at], pieces: vec![1000], turn: 0 };
            let cut = next(&mut Reader::default(), &mut source, 1000);
            prop_assert_eq!(if at == 0 { cut == Ok(None) } else { matches!(cut, Err(Error::Lost(_))) }, true);
        }

        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>, pieces in prop::collection::vec(1usize..50, 1..4)) {
            let mut source = Source { bytes: &bytes, pieces, turn: 0 };
            let _ = next(&mut Reader::default(), &mut source, 1000);
        }
    }
}
