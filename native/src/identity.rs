//! The digest of a model's identity: SHA-256 over its config and the index of its weights.
//!
//! Both are JSON. They are hashed in a canonical form (keys sorted, no white space), so two files that say the same
//! give one digest however they were written.

use sha2::{Digest, Sha256};
use std::fmt;

/// The most bytes of JSON either part may have. An index of a 400B model with 128 experts is about 20 MB.
pub const MAX_JSON_BYTES: usize = 256 << 20;

const DOMAIN: &[u8] = b"swarmnode/model-identity/1\0";

/// Why an identity cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// A part is longer than [`MAX_JSON_BYTES`].
    TooLarge {
        /// Which part: `config` or `index`.
        part: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A part is not a JSON object.
    NotAnObject {
        /// Which part: `config` or `index`.
        part: &'static str,
        /// What is wrong with it, with line and column where known.
        reason: String,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { part, bytes } => {
                write!(f, "the {part} has {bytes} bytes, more than {MAX_JSON_BYTES}")
            }
            Self::NotAnObject { part, reason } => {
                write!(f, "the {part} is not a JSON object: {reason}")
            }
        }
    }
}

impl std::error::Error for IdentityError {}

/// SHA-256 of a model's config and weights index, each in canonical form and preceded by its length.
///
/// # Errors
///
/// [`IdentityError`] when either part is too large or not a JSON object.
pub fn model_digest(config: &[u8], index: &[u8]) -> Result<[u8; 32], IdentityError> {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    for (part, json) in [("config", config), ("index", index)] {
        let canonical = canonical_object(part, json)?;
        hash.update((canonical.len() as u64).to_le_bytes());
        hash.update(&canonical);
    }
    Ok(hash.finalize().into())
}

fn canonical_object(part: &'static str, json: &[u8]) -> Result<Vec<u8>, IdentityError> {
    if json.len() > MAX_JSON_BYTES {
        return Err(IdentityError::TooLarge { part, bytes: json.len() });
    }
    let refuse = |reason: String| IdentityError::NotAnObject { part, reason };
    // serde_json keeps objects in a BTreeMap, so writing one out again sorts its keys; it also bounds the nesting.
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(|error| refuse(error.to_string()))?;
    serde_json::to_vec(&object).map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ignores_how_the_json_is_written() {
        let one = model_digest(br#"{"a": 1, "b": [1.5, null]}"#, b"{}").unwrap();
        let other = model_digest(b"{\"b\":[1.5,null],\n\"a\":1}", b"{ }").unwrap();
        assert_eq!(one, other);
    }

    #[test]
    fn tells_apart_what_differs() {
        let one = model_digest(br#"{"a": 1}"#, br#"{"b": 2}"#).unwrap();
        assert_ne!(one, model_digest(br#"{"a": 2}"#, br#"{"b": 2}"#).unwrap());
        assert_ne!(one, model_digest(br#"{"a": 1}"#, br#"{"b": 3}"#).unwrap());
        assert_ne!(one, model_digest(br#"{"b": 2}"#, br#"{"a": 1}"#).unwrap());
    }

    #[test]
    fn is_golden() {
        let hex: String =
            model_digest(b"{}", b"{}").unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "1f0a2cee6a70f64f869d9d6bff82b4347bd382cb9fb50f7f45b456f94fe33a48");
    }

    #[test]
    fn says_which_part_is_broken() {
        let error = model_digest(b"{}", b"[1]").unwrap_err();
        assert!(error.to_string().starts_with("the index is not a JSON object"), "{error}");
        let deep = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
        assert!(model_digest(&deep, b"{}").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(config: Vec<u8>, index: Vec<u8>) {
            let _ = model_digest(&config, &index);
        }
    }
}
