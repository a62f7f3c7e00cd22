//! One stream of a multiplexed connection, by its number.

use super::connection::Shared;
use crate::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// A two-way run of bytes.
pub struct Stream {
    shared: Arc<Shared>,
    id: u32,
    finished: AtomicBool,
    ended: AtomicBool,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, finished: AtomicBool::new(false), ended: AtomicBool::new(false) }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        self.check()?;
        self.shared.work(|table| table.read(self.id, cx, buffer))
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        self.check()?;
        self.shared.poll_write(self.id, cx, data)
    }

    pub(crate) fn poll_finish(&self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.check()?;
        self.finished.store(true, Ordering::Relaxed);
        Poll::Ready(self.shared.work(|table| table.finish(self.id)))
    }

    pub(crate) fn close(&self) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.shared.work(|table| table.close(self.id));
        }
    }

    pub(crate) fn reset(&self, _code: u64) {
        // yamux has no codes
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.shared.work(|table| table.reset(self.id));
        }
    }

    pub(crate) fn queued(&self, change: isize) {
        self.shared.queued(change);
    }

    fn check(&self) -> Result<(), Error> {
        if self.ended.load(Ordering::Relaxed) { Err(Error::Finished) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("yamux::Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    /// Nobody will read or write any more, and nobody said that what was written is all: as after a crash.
    fn drop(&mut self) {
        if self.finished.load(Ordering::Relaxed) { self.close() } else { self.reset(0) }
    }
}
