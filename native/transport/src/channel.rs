//! A stream as its user wants it: bytes with a way to put some back, and whole messages, each direction on its own.

use crate::error::Error;
use crate::message::{Message, Reader, Writer};
use crate::muxed::Stream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

/// A stream with what was read too much and messages that are under way.
#[derive(Debug)]
pub struct Channel {
    stream: Stream,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Option<Writer>>,
    moved_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Incoming {
    early: Vec<u8>,
    messages: Reader,
}

impl Channel {
    /// Over a fresh stream.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
            moved_bytes: AtomicU64::new(0),
        }
    }

    /// The stream below.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Bytes that the stream has given and taken so far: while it changes, the other end lives.
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that have come; 0 at the end.
    ///
    /// # Errors
    ///
    /// As [`Stream::poll_read`].
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        self.read(&mut lock(&self.incoming).early, cx, buffer)
    }

    /// Put back what was read too much.
    pub fn unread(&self, bytes: &[u8]) {
        lock(&self.incoming).early.splice(..0, bytes.iter().copied());
    }

    /// The next message; `None` once the other end has finished. See [`Reader::poll`].
    ///
    /// # Errors
    ///
    /// As [`Reader::poll`] and [`Stream::poll_read`].
    pub fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        max_body_bytes: usize,
        into: Option<&mut [u8]>,
    ) -> Poll<Result<Option<Message>, Error>> {
        let incoming = &mut *lock(&self.incoming);
        let early = &mut incoming.early;
        incoming.messages.poll(max_body_bytes, into, |buffer| self.read(early, cx, buffer))
    }

    /// The memory that a receive was to write to is gone. See [`Reader::give_up`].
    pub fn give_up_receive(&self) {
        lock(&self.incoming).messages.give_up();
    }

    /// Take as much of `data` as there is room for.
    ///
    /// # Errors
    ///
    /// As [`Stream::poll_write`].
    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        let written = ready!(self.stream.poll_write(cx, data))?;
        self.moved(written);
        Poll::Ready(Ok(written))
    }

    /// Send a message: call with the same header and body until it is out; nothing else may be written meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Writer::new`] and [`Stream::poll_write`].
    pub fn poll_send(&self, cx: &mut Context<'_>, header: &[u8], body: &[u8]) -> Poll<Result<(), Error>> {
        let outgoing = &mut *lock(&self.outgoing);
        let writer = match outgoing {
            Some(writer) => writer,
            None => {
                let writer = Writer::new(header, body)?;
                self.stream.queued(signed(writer.left()));
                outgoing.insert(writer)
            }
        };
        let before = writer.left();
        let done = writer.poll(body, |piece| self.poll_write(cx, piece));
        self.stream.queued(-signed(before - writer.left()));
        if done.is_ready() {
            self.forget(outgoing);
        }
        done
    }

    /// A message will not be sent on. When some of it is out, the stream is reset.
    pub fn give_up_send(&self) {
        let outgoing = &mut *lock(&self.outgoing);
        let begun = outgoing.as_ref().is_some_and(Writer::begun);
        self.forget(outgoing);
        if begun {
            self.stream.reset(0);
        }
    }

    fn forget(&self, outgoing: &mut Option<Writer>) {
        if let Some(writer) = outgoing.take() {
            self.stream.queued(-signed(writer.left()));
        }
    }

    fn read(
        &self,
        early: &mut Vec<u8>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, Error>> {
        if early.is_empty() {
            let read = ready!(self.stream.poll_read(cx, buffer))?;
            self.moved(read);
            return Poll::Ready(Ok(read));
        }
        let some = early.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(early.drain(..some)) {
            *to = from;
        }
        Poll::Ready(Ok(some))
    }

    fn moved(&self, bytes: usize) {
        self.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let outgoing = &mut *lock(&self.outgoing);
        self.forget(outgoing);
    }
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

fn lock<T>(side: &Mutex<T>) -> MutexGuard<'_, T> {
    side.lock().unwrap_or_else(PoisonError::into_inner)
}
