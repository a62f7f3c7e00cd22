//! multistream-select: two ends agree on one protocol (libp2p specs, `connections`). Used before there are streams.

use crate::error::Error;

/// The protocol of the negotiation itself.
const GREETING: &str = "/multistream/1.0.0";
const NOT_SPOKEN: &str = "na";
/// No protocol of libp2p's comes near.
const MAX_LINE_BYTES: usize = 256;
/// How many protocols the other end may ask for before it is given up.
const MAX_WISHES: usize = 16;

/// What is negotiated over.
pub(crate) trait Pipe {
    /// Exactly so many bytes, as soon as they have come.
    async fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Error>;
    /// Send all of this.
    async fn write(&mut self, data: &[u8]) -> Result<(), Error>;
}

/// The greeting and one wish, in one piece so that they cost one packet.
pub(crate) fn wish(protocol: &str) -> Vec<u8> {
    [line(GREETING), line(protocol)].concat()
}

/// Hear whether what was asked for by [`wish`] is spoken.
pub(crate) async fn granted(pipe: &mut impl Pipe, protocol: &str) -> Result<(), Error> {
    greeted(pipe).await?;
    let answer = next(pipe).await?;
    if answer == protocol.as_bytes() {
        return Ok(());
    }
    Err(Error::Lost(format!("the other end does not speak {protocol}")))
}

/// Let the other end ask until it asks for `protocol`.
pub(crate) async fn offer(pipe: &mut impl Pipe, protocol: &str) -> Result<(), Error> {
    greeted(pipe).await?;
    pipe.write(&line(GREETING)).await?;
    for _ in 0..MAX_WISHES {
        if next(pipe).await? == protocol.as_bytes() {
            return pipe.write(&line(protocol)).await;
        }
        pipe.write(&line(NOT_SPOKEN)).await?;
    }
    Err(Error::Lost(format!("the other end does not want {protocol}")))
}

async fn greeted(pipe: &mut impl Pipe) -> Result<(), Error> {
    if next(pipe).await? == GREETING.as_bytes() { Ok(()) } else { Err(broken()) }
}

/// A line without its line break. Its length is a varint of at most two bytes here.
async fn next(pipe: &mut impl Pipe) -> Result<Vec<u8>, Error> {
    let mut length = 0;
    for shift in [0, 7] {
        let byte = usize::from(*pipe.read(1).await?.first().ok_or_else(broken)?);
        length |= (byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    if length == 0 || length > MAX_LINE_BYTES {
        return Err(broken());
    }
    let mut body = pipe.read(length).await?;
    if body.pop() == Some(b'\n') { Ok(body) } else { Err(broken()) }
}

fn line(text: &str) -> Vec<u8> {
    let length = text.len() + 1;
    let mut bytes = Vec::with_capacity(length + 2);
    // All lines of ours are shorter than 128 bytes; two bytes of length would be right for any up to 16,383.
    if length < 0x80 {
        bytes.push(u8::try_from(length).unwrap_or(0));
    } else {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        bytes.push(u8::try_from(length >> 7).unwrap_or(0));
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(b'\n');
    bytes
}

fn broken() -> Error {
    Error::Lost("the other end does not speak multistream-select".into())
}
