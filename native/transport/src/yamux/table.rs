//! The streams of one connection: windows, buffers, ends. Knows no socket and no lock; time is a tick.
//!
//! Reading a stream gives its window back, and twice the window to a reader that keeps up; writing waits for the other
//! end's window for as long as the connection lives. Frames to send and tasks to wake are left in `replies` and `wake`.

use super::frame::{ACK, FIN, Header, Kind, RST, SYN};
use crate::error::Error;
use crate::limits;
use bytes::{Buf, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

/// What either end may send before the other has read anything (yamux specification).
const INITIAL_WINDOW_BYTES: u32 = 256 << 10;
/// The least that a chunk of what came has room for.
const CHUNK_BYTES: usize = 4 << 10;
/// Why a connection goes away: nothing is wrong, or the other end broke the protocol.
pub(super) const MEANT: u32 = 0;
pub(super) const VIOLATION: u32 = 1;

/// A connection's streams.
#[derive(Debug)]
pub(super) struct Table {
    flows: HashMap<u32, Flow>,
    opened_by_us: bool,
    next_id: u32,
    theirs: usize,
    buffered_bytes: usize,
    /// Why the connection has ended.
    pub(super) end: Option<Error>,
    pub(super) replies: Vec<Header>,
    pub(super) wake: Vec<Waker>,
    /// Streams that the other end has opened since this was last looked at.
    pub(super) opened: Vec<u32>,
    /// Answers to our pings since this was last looked at.
    pub(super) pongs: Vec<u32>,
}

#[derive(Debug)]
struct Flow {
    chunks: VecDeque<BytesMut>,
    buffered_bytes: u32,
    /// What the other end should be able to have under way.
    window_bytes: u32,
    /// What it may still send now.
    credit_bytes: u32,
    /// What we may still send now.
    may_send_bytes: u32,
    fin_sent: bool,
    fin_received: bool,
    /// Its user is done with it; it waits for the other end to be, too.
    closed: bool,
    linger_ticks: u32,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Flow {
    fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            buffered_bytes: 0,
            window_bytes: INITIAL_WINDOW_BYTES,
            credit_bytes: INITIAL_WINDOW_BYTES,
            may_send_bytes: INITIAL_WINDOW_BYTES,
            fin_sent: false,
            fin_received: false,
            closed: false,
            linger_ticks: 0,
            reader: None,
            writer: None,
        }
    }
}

impl Table {
    pub(super) fn new(opened_by_us: bool) -> Self {
        Self {
            flows: HashMap::new(),
            opened_by_us,
            next_id: if opened_by_us { 1 } else { 2 },
            theirs: 0,
            buffered_bytes: 0,
            end: None,
            replies: Vec::new(),
            wake: Vec::new(),
            opened: Vec::new(),
            pongs: Vec::new(),
        }
    }

    /// How many streams are open or being closed.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    // What users of streams do.

    pub(super) fn open(&mut self) -> Result<u32, Error> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let id = self.next_id;
        self.next_id = id.checked_add(2).ok_or(Error::Misuse("no connection carries so many streams"))?;
        self.flows.insert(id, Flow::new());
        self.reply(Kind::Window, SYN, id, 0);
        Ok(id)
    }

    pub(super) fn read(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, Error>> {
        let sluggish = self.sluggish();
        let Some(flow) = self.flows.get_mut(&id) else { return Poll::Ready(Err(self.gone())) };
        if flow.closed {
            return Poll::Ready(Err(Error::Finished));
        }
        let mut taken = 0;
        while let Some(chunk) = flow.chunks.front_mut() {
            let Some(room) = buffer.get_mut(taken..).filter(|room| !room.is_empty()) else { break };
            let length = chunk.len().min(room.len());
            if let (Some(room), Some(data)) = (room.get_mut(..length), chunk.get(..length)) {
                room.copy_from_slice(data);
            }
            chunk.advance(length);
            taken += length;
            if chunk.is_empty() {
                flow.chunks.pop_front();
            }
        }
        if taken == 0 && !buffer.is_empty() {
            return match (flow.fin_received, &self.end) {
                (true, _) => Poll::Ready(Ok(0)),
                (false, Some(end)) => Poll::Ready(Err(end.clone())),
                (false, None) => {
                    flow.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        self.buffered_bytes = self.buffered_bytes.saturating_sub(taken);
        flow.buffered_bytes = flow.buffered_bytes.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        if !flow.fin_received && self.end.is_none() {
            let promised = flow.credit_bytes.saturating_add(flow.buffered_bytes);
            let mut more = flow.window_bytes.saturating_sub(promised);
            if more >= flow.window_bytes / 2 {
                if flow.chunks.is_empty() && !sluggish && flow.window_bytes < limits::STREAM_WINDOW_BYTES {
                    more += flow.window_bytes; // the reader keeps up
                    flow.window_bytes *= 2;
                }
                flow.credit_bytes += more;
                self.reply(Kind::Window, 0, id, more);
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Take leave to send up to `wanted` bytes, at least one.
    pub(super) fn reserve(&mut self, id: u32, cx: &mut Context<'_>, wanted: u32) -> Poll<Result<u32, Error>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.clone()));
        }
        let Some(flow) = self.flows.get_mut(&id) else { return Poll::Ready(Err(self.gone())) };
        if flow.closed || flow.fin_sent {
            return Poll::Ready(Err(Error::Finished));
        }
        if flow.may_send_bytes == 0 && wanted > 0 {
            flow.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let leave = wanted.min(flow.may_send_bytes);
        flow.may_send_bytes -= leave;
        Poll::Ready(Ok(leave))
    }

    pub(super) fn finish(&mut self, id: u32) -> Result<(), Error> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let Some(flow) = self.flows.get_mut(&id) else { return Err(self.gone()) };
        if flow.closed || flow.fin_sent {
            return Err(Error::Finished);
        }
        flow.fin_sent = true;
        self.reply(Kind::Window, FIN, id, 0);
        Ok(())
    }

    /// Its user is done; it goes once the other end is, too.
    pub(super) fn close(&mut self, id: u32) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.closed = true;
        self.buffered_bytes =
            self.buffered_bytes.saturating_sub(usize::try_from(flow.buffered_bytes).unwrap_or(0));
        flow.buffered_bytes = 0;
        flow.chunks.clear();
        let (finish, done) = (!flow.fin_sent, flow.fin_received);
        flow.fin_sent = true;
        self.wake.extend(flow.reader.take().into_iter().chain(flow.writer.take()));
        if finish {
            self.reply(Kind::Window, FIN, id, 0);
        }
        if done {
            self.forget(id);
        }
    }

    /// Drop both directions.
    pub(super) fn reset(&mut self, id: u32) {
        if self.forget(id) {
            self.reply(Kind::Window, RST, id, 0);
        }
    }

    // What the other end does. An error says what it did that it must not.

    pub(super) fn on_frame(&mut self, header: Header) -> Result<(), &'static str> {
        let Header { kind, flags, stream, value } = header;
        match kind {
            Kind::Ping if flags & SYN != 0 => self.reply(Kind::Ping, ACK, 0, value),
            Kind::Ping => self.pongs.push(value),
            Kind::GoAway => {
                let why = if value == MEANT {
                    Error::Closed
                } else {
                    Error::Lost(format!("the other end gave up (code {value})"))
                };
                self.lose(why);
            }
            Kind::Data | Kind::Window => {
                if flags & SYN != 0 {
                    self.on_syn(stream)?;
                }
                if kind == Kind::Window {
                    if let Some(flow) = self.flows.get_mut(&stream) {
                        flow.may_send_bytes = flow.may_send_bytes.saturating_add(value);
                        self.wake.extend(flow.writer.take());
                    }
                    self.on_flags(stream, flags);
                } else if value == 0 {
                    self.on_flags(stream, flags);
                } else if let Some(flow) = self.flows.get_mut(&stream) {
                    flow.credit_bytes =
                        flow.credit_bytes.checked_sub(value).ok_or("more than its window allows")?;
                } else if value > limits::STREAM_WINDOW_BYTES {
                    return Err("a frame larger than any window");
                }
            }
        }
        if self.replies.len() > limits::MAX_REPLIES {
            return Err("more than could be answered");
        }
        Ok(())
    }

    pub(super) fn on_piece(&mut self, of: Header, data: &[u8], last: bool) -> Result<(), &'static str> {
        if let Some(flow) = self.flows.get_mut(&of.stream)
            && !flow.closed
        {
            self.buffered_bytes += data.len();
            if self.buffered_bytes > usize::try_from(limits::CONNECTION_WINDOW_BYTES).unwrap_or(usize::MAX) {
                return Err("more than may wait to be read");
            }
            flow.buffered_bytes += u32::try_from(data.len()).unwrap_or(u32::MAX);
            // Frames of single bytes must not cost a chunk each.
            match flow.chunks.back_mut().filter(|chunk| chunk.capacity() - chunk.len() >= data.len()) {
                Some(chunk) => chunk.extend_from_slice(data),
                None => {
                    let mut chunk = BytesMut::with_capacity(data.len().max(CHUNK_BYTES));
                    chunk.extend_from_slice(data);
                    flow.chunks.push_back(chunk);
                }
            }
            self.wake.extend(flow.reader.take());
        }
        if last {
            self.on_flags(of.stream, of.flags);
        }
        Ok(())
    }

    /// The other end will not close so many streams that we have closed: sweep those that waited long enough.
    pub(super) fn tick(&mut self) {
        let mut overdue = Vec::new();
        for (id, flow) in &mut self.flows {
            if flow.closed {
                flow.linger_ticks += 1;
                if flow.linger_ticks >= limits::LINGER_TICKS {
                    overdue.push(*id);
                }
            }
        }
        for id in overdue {
            self.reset(id);
        }
    }

    /// The connection has ended. What has come on a stream that was finished can still be read.
    pub(super) fn lose(&mut self, why: Error) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(why);
        for flow in self.flows.values_mut() {
            self.wake.extend(flow.reader.take().into_iter().chain(flow.writer.take()));
            if !flow.fin_received {
                self.buffered_bytes =
                    self.buffered_bytes.saturating_sub(usize::try_from(flow.buffered_bytes).unwrap_or(0));
                flow.buffered_bytes = 0;
                flow.chunks.clear();
            }
        }
        self.flows.retain(|_, flow| !flow.closed);
    }

    fn on_syn(&mut self, id: u32) -> Result<(), &'static str> {
        if id == 0 || !self.is_theirs(id) || self.flows.contains_key(&id) {
            return Err("a stream id that is not its to use");
        }
        if self.theirs >= usize::try_from(limits::MAX_STREAMS).unwrap_or(usize::MAX) || self.end.is_some() {
            self.reply(Kind::Window, RST, id, 0);
            return Ok(());
        }
        self.theirs += 1;
        self.flows.insert(id, Flow::new());
        self.opened.push(id);
        self.reply(Kind::Window, ACK, id, 0);
        Ok(())
    }

    fn on_flags(&mut self, id: u32, flags: u16) {
        if flags & RST != 0 {
            self.forget(id);
        } else if flags & FIN != 0
            && let Some(flow) = self.flows.get_mut(&id)
        {
            flow.fin_received = true;
            self.wake.extend(flow.reader.take());
            if flow.closed {
                self.forget(id);
            }
        }
    }

    /// Take a stream out; whether it was there.
    fn forget(&mut self, id: u32) -> bool {
        let Some(mut flow) = self.flows.remove(&id) else { return false };
        self.buffered_bytes =
            self.buffered_bytes.saturating_sub(usize::try_from(flow.buffered_bytes).unwrap_or(0));
        self.wake.extend(flow.reader.take().into_iter().chain(flow.writer.take()));
        if self.is_theirs(id) {
            self.theirs -= 1;
        }
        true
    }

    fn is_theirs(&self, id: u32) -> bool {
        (id % 2 == 1) != self.opened_by_us
    }

    /// Whether so much waits to be read that windows should not grow.
    fn sluggish(&self) -> bool {
        self.buffered_bytes > usize::try_from(limits::CONNECTION_WINDOW_BYTES / 2).unwrap_or(usize::MAX)
    }

    fn gone(&self) -> Error {
        self.end.clone().unwrap_or(Error::Reset(0))
    }

    fn reply(&mut self, kind: Kind, flags: u16, stream: u32, value: u32) {
        if self.end.is_none() {
            self.replies.push(Header { kind, flags, stream, value });
        }
    }
}
