//! What can go wrong, sorted by what its catcher does about it.

use std::fmt;

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The connection was closed on purpose, by either end.
    Closed,
    /// The connection broke, or was never made.
    Lost(String),
    /// The other end reset the stream, or wants no more of it, with this code.
    Reset(u64),
    /// This end has finished, closed or reset the stream.
    Finished,
    /// What came is no message; the stream is of no use any more.
    BadMessage(String),
    /// The caller's own mistake.
    Misuse(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the connection was closed"),
            Self::Lost(why) | Self::BadMessage(why) => f.write_str(why),
            Self::Reset(code) => write!(f, "the other end dropped the stream (code {code})"),
            Self::Finished => f.write_str("the stream is closed"),
            Self::Misuse(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<quinn::ConnectionError> for Error {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::LocallyClosed | E::ApplicationClosed(_) => Self::Closed,
            E::TimedOut => Self::Lost("nothing came from the other end".into()),
            E::Reset => Self::Lost("the other end has forgotten the connection".into()),
            E::ConnectionClosed(close) => Self::Lost(format!("the other end gave up ({close})")),
            E::TransportError(error) => Self::Lost(format!("the connection failed ({error})")),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<quinn::ReadError> for Error {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into_inner()),
            quinn::ReadError::ConnectionLost(error) => error.into(),
            quinn::ReadError::ClosedStream => Self::Finished,
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<quinn::WriteError> for Error {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Reset(code.into_inner()),
            quinn::WriteError::ConnectionLost(error) => error.into(),
            quinn::WriteError::ClosedStream => Self::Finished,
            other => Self::Lost(other.to_string()),
        }
    }
}
