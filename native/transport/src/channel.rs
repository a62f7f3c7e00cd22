//! A stream as its user wants it: bytes with a way to put some back, and whole messages, each direction on its own.
//!
//! A message that does not come at once is put together on the runtime, so that its receiver is woken once for all of it.

use crate::error::Error;
use crate::message::{Message, Reader, Writer};
use crate::muxed::Stream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::runtime::Handle;

/// A stream with what was read too much and messages that are under way.
#[derive(Debug)]
pub struct Channel {
    stream: Stream,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Option<Writer>>,
    moved_bytes: AtomicU64,
    gathering: Waker,
}

#[derive(Debug, Default)]
struct Incoming {
    early: Vec<u8>,
    messages: Reader,
    /// A message that is being waited for: how long its body may be, and who waits.
    awaited: Option<(usize, Waker)>,
    /// What came of it when nobody was there to take it.
    gathered: Option<Result<Option<Message>, Error>>,
}

impl Channel {
    /// Over a fresh stream of a connection that lives on this runtime.
    pub fn new(stream: Stream, runtime: Weak<Handle>) -> Arc<Self> {
        Arc::new_cyclic(|channel| Self {
            stream,
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
            moved_bytes: AtomicU64::new(0),
            gathering: Waker::from(Arc::new(Gather { channel: Weak::clone(channel), runtime })),
        })
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
    /// Whoever waits is woken when all of it is here. Giving up loses nothing: the next call goes on.
    ///
    /// # Errors
    ///
    /// As [`Reader::poll`] and [`Stream::poll_read`].
    pub fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        max_body_bytes: usize,
    ) -> Poll<Result<Option<Message>, Error>> {
        let incoming = &mut *lock(&self.incoming);
        if let Some(done) = incoming.gathered.take() {
            return Poll::Ready(done);
        }
        let done = self.gather(incoming, max_body_bytes);
        incoming.awaited = done.is_pending().then(|| (max_body_bytes, cx.waker().clone()));
        done
    }

    /// The next message, its body into the start of the caller's memory; `None` once the other end has finished.
    ///
    /// Whoever waits is woken for each piece, as only the caller may write to its memory.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_receive`].
    pub fn poll_receive_into(
        &self,
        cx: &mut Context<'_>,
        memory: &mut [u8],
    ) -> Poll<Result<Option<Message>, Error>> {
        let incoming = &mut *lock(&self.incoming);
        incoming.awaited = None;
        let done = match incoming.gathered.take() {
            Some(done) => done,
            None => {
                let early = &mut incoming.early;
                let read = |buffer: &mut [u8]| self.read(early, cx, buffer);
                ready!(incoming.messages.poll(0, Some(&mut *memory), read))
            }
        };
        Poll::Ready(done.and_then(|message| message.map(|message| message.moved_into(memory)).transpose()))
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

    fn gather(&self, incoming: &mut Incoming, max_body_bytes: usize) -> Poll<Result<Option<Message>, Error>> {
        let cx = &mut Context::from_waker(&self.gathering);
        let early = &mut incoming.early;
        incoming.messages.poll(max_body_bytes, None, |buffer| self.read(early, cx, buffer))
    }

    /// Go on with the message that is awaited, and wake who awaits it once it is whole.
    fn gather_on(&self) {
        let incoming = &mut *lock(&self.incoming);
        let Some((max_body_bytes, waiting)) = incoming.awaited.take() else { return };
        match self.gather(incoming, max_body_bytes) {
            Poll::Pending => incoming.awaited = Some((max_body_bytes, waiting)),
            Poll::Ready(done) => {
                incoming.gathered = Some(done);
                waiting.wake();
            }
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

/// Wakes a channel whose stream has something to read. Not in the waking call, which may hold the connection's lock.
struct Gather {
    channel: Weak<Channel>,
    runtime: Weak<Handle>,
}

impl Wake for Gather {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(runtime) = self.runtime.upgrade() else { return };
        let channel = Weak::clone(&self.channel);
        runtime.spawn(async move {
            if let Some(channel) = channel.upgrade() {
                channel.gather_on();
            }
        });
    }
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

fn lock<T>(side: &Mutex<T>) -> MutexGuard<'_, T> {
    side.lock().unwrap_or_else(PoisonError::into_inner)
}
