//! Plain bytes as they come, in any pieces, to frames. Holds no more than a header.

use super::frame::{HEADER_BYTES, Header, Kind};

/// What came: a header without a body, or a piece of a data frame's body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A header; data that follows comes as pieces.
    Frame(Header),
    /// A piece of the body of the last header; its flags hold once the last piece has come.
    Piece { of: Header, data: &'a [u8], last: bool },
}

/// Where in the run of frames we are.
#[derive(Debug, Default)]
pub(super) struct Parser {
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    body: Option<(Header, usize)>,
}

impl Parser {
    /// The next event of `data`, which is shortened by what it took; `Ok(None)` when more is needed, an error when
    /// these are no frames.
    pub(super) fn next<'a>(&mut self, data: &mut &'a [u8]) -> Result<Option<Event<'a>>, ()> {
        if let Some((of, left)) = self.body.take() {
            if data.is_empty() {
                self.body = Some((of, left));
                return Ok(None);
            }
            let (piece, rest) = data.split_at(left.min(data.len()));
            *data = rest;
            let last = piece.len() == left;
            if !last {
                self.body = Some((of, left - piece.len()));
            }
            return Ok(Some(Event::Piece { of, data: piece, last }));
        }
        while self.head_bytes < HEADER_BYTES {
            let Some((byte, rest)) = data.split_first() else { return Ok(None) };
            if let Some(place) = self.head.get_mut(self.head_bytes) {
                *place = *byte;
            }
            self.head_bytes += 1;
            *data = rest;
        }
        self.head_bytes = 0;
        let header = Header::from_bytes(self.head).ok_or(())?;
        if header.kind == Kind::Data && header.value > 0 {
            self.body = Some((header, usize::try_from(header.value).map_err(drop)?));
        }
        Ok(Some(Event::Frame(header)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(parser: &mut Parser, mut data: &[u8]) -> Vec<(Header, Vec<u8>)> {
        let mut found: Vec<(Header, Vec<u8>)> = Vec::new();
        while let Some(event) = parser.next(&mut data).unwrap() {
            match event {
                Event::Frame(header) => found.push((header, Vec::new())),
                Event::Piece { of, data, .. } => found.push((of, data.to_vec())),
            }
        }
        found
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5),
            cut in 1usize..40,
        ) {
            let mut run = Vec::new();
            for (stream, body) in (1u32..).zip(&bodies) {
                let value = u32::try_from(body.len()).unwrap();
                run.extend(Header { kind: Kind::Data, flags: 4, stream, value }.to_bytes());
                run.extend(body);
            }
            let mut parser = Parser::default();
            let mut got = vec![Vec::new(); bodies.len()];
            for piece in run.chunks(cut) {
                for (header, data) in all(&mut parser, piece) {
                    got[header.stream as usize - 1].extend(data);
                }
            }
            prop_assert_eq!(got, bodies);
        }

        #[test]
        fn anything_is_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = data.as_slice();
            let mut parser = Parser::default();
            while let Ok(Some(_)) = parser.next(&mut rest) {}
        }
    }
}
