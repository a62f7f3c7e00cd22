//! The bytes of swarmnode: frame checksums and model identities. Knows no torch, no model, no peer.
//!
//! The functions here are plain Rust and tested without Python; `python.rs` is the thin binding, built with the
//! `python` feature.

pub mod checksum;
pub mod identity;

#[cfg(feature = "python")]
mod buffers;
#[cfg(feature = "python")]
mod codec;
#[cfg(feature = "python")]
mod handles;
#[cfg(feature = "python")]
mod kernels;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod stream;
#[cfg(feature = "python")]
mod transport;
