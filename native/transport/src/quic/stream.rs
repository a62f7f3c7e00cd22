//! One stream of a QUIC connection, its two halves apart so that reading never waits for writing.

use super::connection::Counts;
use super::driving::at_once;
use crate::error::Error;
use crate::limits;
use quinn::{RecvStream, SendStream, VarInt};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// A two-way run of bytes.
#[derive(Debug)]
pub struct Stream {
    send: Mutex<Option<SendStream>>,
    finished: AtomicBool,
    receive: Mutex<Option<RecvStream>>,
    counts: Arc<Counts>,
}

impl Stream {
    pub(super) fn new(send: SendStream, receive: RecvStream, counts: Arc<Counts>) -> Self {
        counts.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            send: Mutex::new(Some(send)),
            finished: AtomicBool::new(false),
            receive: Mutex::new(Some(receive)),
            counts,
        }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        match lock(&self.receive).as_mut() {
            Some(receive) => receive.poll_read(cx, buffer).map_err(Error::from),
            None => Poll::Ready(Err(Error::Finished)),
        }
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        let piece = data.get(..limits::MAX_WRITE_BYTES).unwrap_or(data);
        match lock(&self.send).as_mut() {
            Some(send) => at_once(|| Pin::new(send).poll_write(cx, piece)).map_err(Error::from),
            None => Poll::Ready(Err(Error::Finished)),
        }
    }

    pub(crate) fn poll_finish(&self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(match lock(&self.send).as_mut() {
            Some(send) => {
                self.finished.store(true, Ordering::Relaxed);
                send.finish().map_err(|_| Error::Finished)
            }
            None => Err(Error::Finished),
        })
    }

    pub(crate) fn close(&self) {
        // Dropped halves are finished and stopped with code 0, which is how libp2p closes a stream.
        self.end(|_| {}, |_| {});
    }

    pub(crate) fn reset(&self, code: u64) {
        let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
        // An error says that this half has ended already.
        self.end(|send| drop(send.reset(code)), |receive| drop(receive.stop(code)));
    }

    pub(crate) fn queued(&self, change: isize) {
        self.counts.queued_bytes.fetch_add(change, Ordering::Relaxed);
    }

    fn end(&self, send_by: impl FnOnce(&mut SendStream), receive_by: impl FnOnce(&mut RecvStream)) {
        let (send, receive) = (lock(&self.send).take(), lock(&self.receive).take());
        if send.is_some() {
            self.counts.streams.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(mut send) = send {
            send_by(&mut send);
        }
        if let Some(mut receive) = receive {
            receive_by(&mut receive);
        }
    }
}

impl Drop for Stream {
    /// Nobody will read or write any more, and nobody said that what was written is all: as after a crash.
    fn drop(&mut self) {
        if self.finished.load(Ordering::Relaxed) { self.close() } else { self.reset(0) }
    }
}

fn lock<T>(half: &Mutex<T>) -> MutexGuard<'_, T> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}
