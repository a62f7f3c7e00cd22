//! libp2p's Noise: the XX handshake in which both ends prove their peer keys, and the sealing of what follows.
//!
//! libp2p specs, `noise`: `Noise_XX_25519_ChaChaPoly_SHA256`, each message behind two bytes of length, big-endian; the
//! second and the third carry a peer's public key and its signature of the static key that the handshake proves.

use crate::error::Error;
use crate::select::Pipe;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use libp2p_identity::{Keypair, PeerId, PublicKey};
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};

/// The protocol's name.
pub(crate) const PROTOCOL: &str = "/noise";
/// The longest plain text of one message.
pub(crate) const MAX_PLAIN_BYTES: usize = MAX_MESSAGE_BYTES - TAG_BYTES;

const PARAMS: &str = "Noise_XX_25519_ChaChaPoly_SHA256";
const MAX_MESSAGE_BYTES: usize = u16::MAX as usize;
const TAG_BYTES: usize = 16;
const LENGTH_BYTES: usize = 2;
const HASH_BYTES: usize = 32;
/// Keys, a signature and some extensions; what claims to be longer is no handshake.
const MAX_HANDSHAKE_BYTES: usize = 4096;
const SIGNED_FOR: &[u8] = b"noise-libp2p-static-key:";

/// A node's Noise key, and the proof that it belongs to the peer key; made once.
pub(crate) struct Keys {
    secret: Vec<u8>,
    payload: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(keypair: &Keypair) -> Result<Self, Error> {
        let made = Builder::new(params()?).generate_keypair().map_err(failed)?;
        let signature = keypair
            .sign(&[SIGNED_FOR, &made.public].concat())
            .map_err(|_| Error::Misuse("the peer key cannot sign"))?;
        let mut payload = Vec::new();
        put_field(&mut payload, 1, &keypair.public().encode_protobuf());
        put_field(&mut payload, 2, &signature);
        Ok(Self { secret: made.private, payload })
    }
}

/// What a finished handshake leaves.
pub(crate) struct Session {
    pub(crate) peer: PeerId,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// What no other connection has.
    pub(crate) hash: [u8; HASH_BYTES],
}

/// The dialler's first message, which needs to know nothing of the other end.
pub(crate) struct Begun(HandshakeState);

/// Begin as the dialler: the state, and the first message as it travels.
pub(crate) fn begin(keys: &Keys) -> Result<(Begun, Vec<u8>), Error> {
    let builder = Builder::new(params()?).local_private_key(&keys.secret).map_err(failed)?;
    let mut state = builder.build_initiator().map_err(failed)?;
    let first = message(&mut state, &[])?;
    Ok((Begun(state), first))
}

impl Begun {
    /// Go on once the first message is under way; `expected` is whom we dialled. The last message of the handshake
    /// is given back unsent, so that more can travel with it.
    pub(crate) async fn finish(
        self,
        pipe: &mut impl Pipe,
        keys: &Keys,
        expected: PeerId,
    ) -> Result<(Session, Vec<u8>), Error> {
        let mut state = self.0;
        let payload = hear(pipe, &mut state).await?;
        let peer = prove(&state, &payload)?;
        if peer != expected {
            return Err(Error::Lost("another peer answers at its address".into()));
        }
        let last = message(&mut state, &keys.payload)?;
        Ok((session(state, peer)?, last))
    }
}

/// The listener's part, from the first message on.
pub(crate) async fn answer(pipe: &mut impl Pipe, keys: &Keys) -> Result<Session, Error> {
    let builder = Builder::new(params()?).local_private_key(&keys.secret).map_err(failed)?;
    let mut state = builder.build_responder().map_err(failed)?;
    hear(pipe, &mut state).await?;
    pipe.write(&message(&mut state, &keys.payload)?).await?;
    let payload = hear(pipe, &mut state).await?;
    let peer = prove(&state, &payload)?;
    session(state, peer)
}

fn message(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut sealed = vec![0; MAX_HANDSHAKE_BYTES];
    let length = state.write_message(payload, &mut sealed).map_err(failed)?;
    sealed.truncate(length);
    let head = u16::try_from(length).map_err(failed)?.to_be_bytes();
    Ok([head.as_slice(), &sealed].concat())
}

async fn hear(pipe: &mut impl Pipe, state: &mut HandshakeState) -> Result<Vec<u8>, Error> {
    let head = pipe.read(LENGTH_BYTES).await?;
    let length = head.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length > MAX_HANDSHAKE_BYTES {
        return Err(Error::Lost("the other end's handshake is too long".into()));
    }
    let sealed = pipe.read(length).await?;
    let mut payload = vec![0; length];
    let length = state.read_message(&sealed, &mut payload).map_err(failed)?;
    payload.truncate(length);
    Ok(payload)
}

/// The peer whose key has signed the static key that the handshake proved.
fn prove(state: &HandshakeState, payload: &[u8]) -> Result<PeerId, Error> {
    let no_proof = || Error::Lost("the other end did not prove who it is".into());
    let key = field(payload, 1).ok_or_else(no_proof)?;
    let signature = field(payload, 2).ok_or_else(no_proof)?;
    let key = PublicKey::try_decode_protobuf(key).map_err(|_| no_proof())?;
    let proved = state.get_remote_static().ok_or_else(no_proof)?;
    if !key.verify(&[SIGNED_FOR, proved].concat(), signature) {
        return Err(no_proof());
    }
    Ok(key.to_peer_id())
}

fn session(mut state: HandshakeState, peer: PeerId) -> Result<Session, Error> {
    let hash = state.get_handshake_hash().try_into().map_err(failed)?;
    let dialled = state.is_initiator();
    let (there, back) = state.dangerously_get_raw_split();
    let (ours, theirs) = if dialled { (there, back) } else { (back, there) };
    Ok(Session { peer, sealer: Sealer(Keyed::new(&ours)?), opener: Opener(Keyed::new(&theirs)?), hash })
}

fn params() -> Result<NoiseParams, Error> {
    PARAMS.parse().map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Lost(format!("the handshake failed ({error})"))
}

/// One direction's key and how many messages went that way.
struct Keyed {
    key: LessSafeKey,
    count: u64,
}

impl Keyed {
    fn new(key: &[u8]) -> Result<Self, Error> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(failed)?;
        Ok(Self { key: LessSafeKey::new(key), count: 0 })
    }

    /// Noise's nonce: four zero bytes and the count, little-endian. A count never comes twice.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let count = self.count;
        self.count = count.checked_add(1).ok_or(Error::Misuse("no connection carries so many messages"))?;
        let mut nonce = [0; NONCE_LEN];
        if let Some(tail) = nonce.last_chunk_mut() {
            *tail = count.to_le_bytes();
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what we send.
pub(crate) struct Sealer(Keyed);

impl Sealer {
    /// Append one message that holds these parts, together at most [`MAX_PLAIN_BYTES`], to what will travel.
    pub(crate) fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Error> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>() + TAG_BYTES;
        let head = u16::try_from(length).map_err(|_| Error::Misuse("a message is too long"))?;
        out.reserve(LENGTH_BYTES + length);
        out.extend_from_slice(&head.to_be_bytes());
        let start = out.len();
        for part in parts {
            out.extend_from_slice(part);
        }
        let nonce = self.0.nonce()?;
        let plain = out.get_mut(start..).unwrap_or_default();
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::empty(), plain);
        out.extend_from_slice(tag.map_err(|_| Error::Misuse("a message cannot be sealed"))?.as_ref());
        Ok(())
    }
}

/// Opens what comes.
pub(crate) struct Opener(Keyed);

impl Opener {
    /// How long the message at the start of `data` is, its head included; `None` until that can be told.
    pub(crate) fn length(data: &[u8]) -> Option<usize> {
        let head = data.first_chunk::<LENGTH_BYTES>()?;
        Some(LENGTH_BYTES + usize::from(u16::from_be_bytes(*head)))
    }

    /// The plain text of one whole message, in its own place.
    pub(crate) fn open<'a>(&mut self, whole: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
        let sealed = whole.get_mut(LENGTH_BYTES..).unwrap_or_default();
        let nonce = self.0.nonce()?;
        self.0
            .key
            .open_in_place(nonce, Aad::empty(), sealed)
            .map_err(|_| Error::Lost("what came was not sealed by the other end".into()))
    }
}

/// What a connection with this handshake hash exports: HKDF-SHA-256 without salt (docs/PROTOCOL.md, section 12).
pub(crate) fn export(hash: &[u8], label: &[u8], context: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut made = vec![0; length];
    Salt::new(HKDF_SHA256, &[])
        .extract(hash)
        .expand(&[label, &[0], context], Length(length))
        .and_then(|exported| exported.fill(&mut made))
        .map_err(|_| Error::Misuse("so many bytes cannot be exported"))?;
    Ok(made)
}

fn put_field(out: &mut Vec<u8>, number: u8, data: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = data.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or(0));
    out.extend_from_slice(data);
}

/// A field of bytes in a protobuf message; others are passed over.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    let mut found = None;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => {
                varint(&mut message)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (data, rest) = message.split_at_checked(length)?;
        message = rest;
        if key == wanted << 3 | 2 {
            found = Some(data);
        }
    }
    found
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exports_what_the_page_shows() {
        let hash: Vec<u8> = (96..128).collect();
        let made = export(&hash, b"EXPERIMENTAL swarmnode gate 1", b"", 32).unwrap();
        let golden = include_str!("../../../tests/protocols/golden/noise_exporter.hex");
        let made: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(made, golden.trim());
    }

    #[test]
    fn what_is_sealed_is_opened_once_and_in_order() {
        let key = [7; 32];
        let (mut sealer, mut opener) = (Sealer(Keyed::new(&key).unwrap()), Opener(Keyed::new(&key).unwrap()));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        sealer.seal(&[b"he", b"llo"], &mut first).unwrap();
        sealer.seal(&[&vec![3; MAX_PLAIN_BYTES]], &mut second).unwrap();
        assert!(sealer.seal(&[&vec![3; MAX_PLAIN_BYTES + 1]], &mut Vec::new()).is_err());
        assert_eq!(Opener::length(&first), Some(first.len()));
        assert_eq!(opener.open(&mut first.clone()).unwrap(), b"hello");
        assert!(opener.open(&mut first.clone()).is_err(), "it is not the second message");
        assert_eq!(Opener::length(&second), Some(second.len()));
    }

    proptest! {
        #[test]
        fn fields_of_anything_are_found_or_not(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = field(&message, 1);
        }

        #[test]
        fn fields_that_were_put_are_found(
            one in proptest::collection::vec(any::<u8>(), 0..300),
            two in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut message = vec![8, 200, 1]; // a number that nobody asks for
            put_field(&mut message, 1, &one);
            put_field(&mut message, 2, &two);
            prop_assert_eq!(field(&message, 1), Some(one.as_slice()));
            prop_assert_eq!(field(&message, 2), Some(two.as_slice()));
            prop_assert_eq!(field(&message, 3), None);
        }
    }
}
