//! The arithmetic of a block for rows that come one by one: attention of single queries, linear layers. Knows no Python,
//! no model, no session.
//!
//! What comes out for a row depends on this row, on what it is multiplied with and on nothing else, bit for bit: not on
//! how many rows there are, in what order, nor on how many threads. Every sum has one order, and no two threads share one.

mod attention;
mod element;
mod error;
mod isa;
mod linear;
mod pool;
mod view;

pub use attention::{Attention, Session, attend, attend_on};
pub use element::Dtype;
pub use error::KernelError;
pub use isa::Level;
pub use linear::{linear, linear_on};
pub use view::View;
