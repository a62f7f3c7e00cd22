//! Why a computation is refused: each text is a sentence for the one who asked.

use std::fmt;

/// Tensors that do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelError {
    /// This machine has no code of its own here: its CPU lacks fused arithmetic.
    NoCode,
    /// A shape, stride or dtype is not what the others ask for.
    Unfit(&'static str),
    /// An address that its dtype cannot have.
    Unaligned,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCode => f.write_str("this CPU has no fused multiplication and addition"),
            Self::Unfit(what) => write!(f, "the tensors do not fit: {what}"),
            Self::Unaligned => f.write_str("a tensor's address is not a multiple of its values' size"),
        }
    }
}

impl std::error::Error for KernelError {}
