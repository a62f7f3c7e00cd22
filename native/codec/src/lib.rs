//! The codec of swarmnode: activations and gradients as few bytes. Knows no Python, no network.
//!
//! A [`Source`] of values goes by a [`Plan`] into a blob that describes itself; [`decode_into`] turns it back into a
//! buffer that the caller sized from what it expects, never from what the blob claims. The bytes are those of
//! `docs/PROTOCOL.md` and the same on every CPU.

#[cfg(target_endian = "big")]
compile_error!("values travel as they are in memory, little end first");

mod apart;
mod checksum;
mod decode;
mod element;
mod encode;
mod error;
mod fp8;
mod fse;
mod h4;
mod h8;
mod header;
mod huffman;
mod isa;
mod kinds;
mod layout;
mod literals;
mod lossless;
mod outliers;
mod plane;
mod raw;
mod scale;
mod source;
mod squeeze;

pub use decode::{decode_into, decode_on, inspect};
pub use element::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use encode::{Plan, encode_into, most_bytes};
pub use error::CodecError;
pub use header::{HEADER_BYTES, Header, MAX_VALUES};
pub use isa::Level;
pub use kinds::{Dtype, Scheme};
pub use source::Source;
