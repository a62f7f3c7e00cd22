//! A multiplexed connection: writers seal and send from where they are, one task reads, flushes and keeps watch.

use super::frame::{HEADER_BYTES, Header, Kind, SYN};
use super::parser::{Event, Parser};
use super::stream::Stream;
use super::table::{MEANT, Table, VIOLATION};
use crate::carrier::Carrier;
use crate::error::Error;
use crate::limits;
use crate::muxed::{self, Pending, Stats};
use crate::noise::{self, MAX_PLAIN_BYTES, Opener, Sealer};
use libp2p_identity::PeerId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval, sleep};

/// The protocol's name.
pub(crate) const PROTOCOL: &str = "/yamux/1.0.0";

/// A connection over TCP or inside of another one; clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
}

/// What a finished handshake hands to a connection.
pub(crate) struct Start {
    pub(crate) carrier: Carrier,
    pub(crate) session: noise::Session,
    pub(crate) opened_by_us: bool,
    /// Sealed bytes that came already.
    pub(crate) sealed: Vec<u8>,
    /// Plain bytes that came already, before them.
    pub(crate) plain: Vec<u8>,
}

/// A connection that others may drop.
pub(crate) struct Weak(std::sync::Weak<Shared>);

impl Weak {
    pub(crate) fn lives(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(crate) fn close(&self) {
        if let Some(shared) = self.0.upgrade() {
            Connection { shared }.close();
        }
    }
}

pub(super) struct Shared {
    peer: PeerId,
    opened_by_us: bool,
    remote_addr: Option<SocketAddr>,
    near: bool,
    hash: [u8; 32],
    table: Mutex<Table>,
    out: Mutex<Out>,
    accepted: AsyncMutex<mpsc::Receiver<u32>>,
    end: watch::Sender<Option<Error>>,
    pings: Mutex<Pings>,
    received_bytes: AtomicU64,
    queued_bytes: AtomicIsize,
}

/// What is on its way out. Locked before the table where both are.
struct Out {
    carrier: Option<Arc<Carrier>>,
    sealer: Sealer,
    sealed: Vec<u8>,
    /// How much of `sealed` has been taken.
    taken: usize,
    sent_bytes: u64,
    closing: bool,
    driver: Option<Waker>,
    room: Vec<Waker>,
}

#[derive(Default)]
struct Pings {
    next: u32,
    waiting: HashMap<u32, (Instant, Option<oneshot::Sender<Duration>>)>,
    rtt: Duration,
}

impl Connection {
    /// A proved connection, carried from now on: must be called inside of the runtime. `seat` is held until it ends.
    pub(crate) fn new(start: Start, seat: Box<dyn Send>) -> Self {
        let (offer, accepted) = mpsc::channel(limits::MAX_WAITING_STREAMS);
        let carrier = Arc::new(start.carrier);
        let shared = Arc::new(Shared {
            peer: start.session.peer,
            opened_by_us: start.opened_by_us,
            remote_addr: carrier.remote_addr(),
            near: carrier.near(),
            hash: start.session.hash,
            table: Mutex::new(Table::new(start.opened_by_us)),
            out: Mutex::new(Out {
                carrier: Some(Arc::clone(&carrier)),
                sealer: start.session.sealer,
                sealed: Vec::new(),
                taken: 0,
                sent_bytes: 0,
                closing: false,
                driver: None,
                room: Vec::new(),
            }),
            accepted: AsyncMutex::new(accepted),
            end: watch::Sender::new(None),
            pings: Mutex::default(),
            received_bytes: AtomicU64::new(0),
            queued_bytes: AtomicIsize::new(0),
        });
        let mut ticks = interval(limits::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let driver = Driver {
            shared: Arc::clone(&shared),
            carrier,
            opener: start.session.opener,
            parser: Parser::default(),
            sealed: start.sealed,
            offer,
            ticks,
            silent_ticks: 0,
            hung_up: false,
            leave: None,
            why: Error::Closed, // unless something else comes first, it is the node that closes
        };
        tokio::spawn(driver.run(start.plain, seat));
        Self { shared }
    }

    pub(crate) fn downgrade(&self) -> Weak {
        Weak(Arc::downgrade(&self.shared))
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.shared.peer
    }

    pub(crate) fn opened_by_us(&self) -> bool {
        self.shared.opened_by_us
    }

    pub(crate) fn remote_addr(&self) -> Option<SocketAddr> {
        self.shared.remote_addr
    }

    pub(crate) fn near(&self) -> bool {
        self.shared.near
    }

    pub(crate) fn open(&self) -> Pending<muxed::Stream> {
        let opened = self.shared.work(Table::open);
        let shared = Arc::clone(&self.shared);
        Box::pin(std::future::ready(opened.map(|id| muxed::Stream::Yamux(Stream::new(shared, id)))))
    }

    pub(crate) fn accept(&self) -> Pending<muxed::Stream> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let id = shared.accepted.lock().await.recv().await;
            match id {
                Some(id) => Ok(muxed::Stream::Yamux(Stream::new(shared, id))),
                None => Err(lock(&shared.table).end.clone().unwrap_or(Error::Closed)),
            }
        })
    }

    pub(crate) fn ended(&self) -> Pending<Error> {
        let mut end = self.shared.end.subscribe();
        Box::pin(async move {
            let end = end.wait_for(Option::is_some).await.map_err(|_| Error::Closed)?;
            Ok(end.clone().unwrap_or(Error::Closed))
        })
    }

    pub(crate) fn end(&self) -> Option<Error> {
        lock(&self.shared.table).end.clone()
    }

    pub(crate) fn close(&self) {
        let away = Header { kind: Kind::GoAway, flags: 0, stream: 0, value: MEANT };
        let mut out = lock(&self.shared.out);
        if !out.closing {
            self.shared.send(&mut out, &[away]);
            out.closing = true;
            out.wake_driver();
        }
        drop(out);
        self.shared.lose(Error::Closed);
    }

    pub(crate) fn open_streams(&self) -> usize {
        lock(&self.shared.table).len()
    }

    pub(crate) fn exporter(&self, label: &[u8], context: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        noise::export(&self.shared.hash, label, context, length)
    }

    pub(crate) fn ping(&self) -> Pending<Duration> {
        let (answered, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        if !shared.ping(Some(answered)) {
            return Box::pin(std::future::ready(Err(Error::Misuse("too many pings at once"))));
        }
        Box::pin(
            async move { answer.await.map_err(|_| lock(&shared.table).end.clone().unwrap_or(Error::Closed)) },
        )
    }

    pub(crate) fn stats(&self) -> Stats {
        let out = lock(&self.shared.out);
        let queued = self.shared.queued_bytes.load(Ordering::Relaxed);
        Stats {
            rtt: lock(&self.shared.pings).rtt,
            sent_bytes: out.sent_bytes,
            received_bytes: self.shared.received_bytes.load(Ordering::Relaxed),
            queued_bytes: u64::try_from(queued).unwrap_or(0),
            ..Stats::default()
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("yamux::Connection").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

impl Shared {
    /// Change the table, and do what follows from it: frames are sent, tasks woken.
    pub(super) fn work<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = lock(&self.table);
        let result = change(&mut table);
        let (replies, wake) = (std::mem::take(&mut table.replies), std::mem::take(&mut table.wake));
        drop(table);
        if !replies.is_empty() {
            let mut out = lock(&self.out);
            self.send(&mut out, &replies);
        }
        for waker in wake {
            waker.wake();
        }
        result
    }

    pub(super) fn poll_write(
        &self,
        id: u32,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Error>> {
        let data = data.get(..limits::MAX_WRITE_BYTES).unwrap_or(data);
        let mut out = lock(&self.out);
        if out.waiting_bytes() > limits::MAX_BACKLOG_BYTES && out.carrier.is_some() {
            if !out.room.iter().any(|waker| waker.will_wake(cx.waker())) {
                out.room.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let wanted = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let leave = match lock(&self.table).reserve(id, cx, wanted) {
            Poll::Ready(leave) => leave?,
            Poll::Pending => return Poll::Pending,
        };
        let data = data.get(..usize::try_from(leave).unwrap_or(0)).unwrap_or(data);
        for piece in data.chunks(MAX_PLAIN_BYTES - HEADER_BYTES) {
            let value = u32::try_from(piece.len()).unwrap_or(0);
            let header = Header { kind: Kind::Data, flags: 0, stream: id, value };
            out.seal(&[&header.to_bytes(), piece])?;
        }
        out.push_out();
        Poll::Ready(Ok(data.len()))
    }

    pub(super) fn queued(&self, change: isize) {
        self.queued_bytes.fetch_add(change, Ordering::Relaxed);
    }

    /// Send frames without a body. They wait for nobody; who makes us send too many of them without reading is cut off.
    fn send(&self, out: &mut Out, headers: &[Header]) {
        let bytes: Vec<u8> = headers.iter().flat_map(|header| header.to_bytes()).collect();
        for piece in bytes.chunks(MAX_PLAIN_BYTES / HEADER_BYTES * HEADER_BYTES) {
            if out.seal(&[piece]).is_err() {
                return; // it has ended
            }
        }
        out.push_out();
    }

    fn ping(&self, answered: Option<oneshot::Sender<Duration>>) -> bool {
        let mut pings = lock(&self.pings);
        pings.waiting.retain(|_, (at, waiting)| match waiting {
            Some(waiting) => !waiting.is_closed(),
            None => at.elapsed() < limits::TICK * limits::SILENT_TICKS,
        });
        if pings.waiting.len() >= limits::MAX_PINGS {
            return false;
        }
        let value = pings.next;
        pings.next = value.wrapping_add(1);
        pings.waiting.insert(value, (Instant::now(), answered));
        drop(pings);
        if lock(&self.table).end.is_some() {
            lock(&self.pings).waiting.clear(); // nobody else will
        }
        let mut out = lock(&self.out);
        self.send(&mut out, &[Header { kind: Kind::Ping, flags: SYN, stream: 0, value }]);
        true
    }

    fn on_pongs(&self, values: &[u32]) {
        let mut pings = lock(&self.pings);
        for value in values {
            if let Some((asked, answered)) = pings.waiting.remove(value) {
                pings.rtt = asked.elapsed();
                if let Some(answered) = answered {
                    let _ = answered.send(pings.rtt);
                }
            }
        }
    }

    /// The connection has ended for its users.
    fn lose(&self, why: Error) {
        self.work(|table| table.lose(why));
        let why = lock(&self.table).end.clone();
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = why;
            }
            first
        });
        let room = std::mem::take(&mut lock(&self.out).room);
        for waker in room {
            waker.wake();
        }
        lock(&self.pings).waiting.clear();
    }
}

impl Out {
    fn waiting_bytes(&self) -> usize {
        self.sealed.len() - self.taken
    }

    fn seal(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        if self.carrier.is_none() || self.closing {
            return Err(Error::Closed);
        }
        self.sealer.seal(parts, &mut self.sealed)
    }

    /// Hand over what is taken at once; the driver sees to the rest.
    fn push_out(&mut self) {
        if let Some(carrier) = self.carrier.clone()
            // While something waits, it is the driver who writes.
            && self.taken == 0
        {
            match carrier.try_write(&self.sealed) {
                Ok(taken) => self.took(taken),
                Err(_) => self.wake_driver(), // it will meet the same error
            }
        }
        if self.waiting_bytes() > 0 {
            self.wake_driver();
        }
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        self.sent_bytes += u64::try_from(bytes).unwrap_or(0);
        if self.taken == self.sealed.len() {
            self.taken = 0;
            self.sealed.clear();
            if self.sealed.capacity() > limits::KEPT_BYTES {
                self.sealed = Vec::new();
            }
        }
    }

    fn poll_push_out(&mut self, cx: &mut Context<'_>, carrier: &Carrier) -> Poll<Result<(), Error>> {
        while self.waiting_bytes() > 0 {
            let waiting = self.sealed.get(self.taken..).unwrap_or_default();
            match carrier.poll_write(cx, waiting) {
                Poll::Ready(Ok(taken)) => self.took(taken),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.taken > limits::KEPT_BYTES {
                        self.sealed.drain(..self.taken);
                        self.taken = 0;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}

thread_local! {
    /// Where what comes is opened; the tokio thread has one, whatever the number of connections.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; limits::READ_BYTES]);
}

/// The task of a connection.
struct Driver {
    shared: Arc<Shared>,
    carrier: Arc<Carrier>,
    opener: Opener,
    parser: Parser,
    /// The beginning of a message whose end has not come.
    sealed: Vec<u8>,
    offer: mpsc::Sender<u32>,
    ticks: Interval,
    silent_ticks: u32,
    hung_up: bool,
    /// Until when the other end may take its leave.
    leave: Option<std::pin::Pin<Box<Sleep>>>,
    why: Error,
}

impl Drop for Driver {
    fn drop(&mut self) {
        let closing = lock(&self.shared.out).closing;
        // Whatever we meet after our own good-bye is no news.
        self.shared.lose(if closing { Error::Closed } else { self.why.clone() });
        lock(&self.shared.out).carrier = None;
    }
}

impl Driver {
    async fn run(mut self, plain: Vec<u8>, seat: Box<dyn Send>) {
        let begun = self.on_plain(&plain).and_then(|()| self.on_sealed(&mut []));
        self.why = match begun {
            Ok(()) => poll_fn(|cx| self.poll(cx)).await,
            Err(why) => why,
        };
        drop(self);
        drop(seat);
    }

    /// Ready with why the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Poll::Ready(why) = self.poll_read(cx) {
            return Poll::Ready(why);
        }
        while self.ticks.poll_tick(cx).is_ready() {
            if let Err(why) = self.tick() {
                return Poll::Ready(why);
            }
        }
        let mut out = lock(&self.shared.out);
        out.driver = Some(cx.waker().clone());
        if out.waiting_bytes() > limits::MAX_BACKLOG_BYTES + limits::MAX_REPLY_BYTES {
            return Poll::Ready(Error::Lost("the other end does not read its answers".into()));
        }
        let pushed = out.poll_push_out(cx, &self.carrier);
        let room = if out.waiting_bytes() > limits::MAX_BACKLOG_BYTES {
            Vec::new()
        } else {
            std::mem::take(&mut out.room)
        };
        let closing = out.closing;
        drop(out);
        for waker in room {
            waker.wake();
        }
        match pushed {
            Poll::Ready(Err(why)) => return Poll::Ready(why),
            // The other end reads our good-bye and hangs up, too; no more than this could take it away from it.
            Poll::Ready(Ok(())) if closing && !self.hung_up => {
                self.hung_up = true;
                self.carrier.finish();
            }
            _ => {}
        }
        if closing {
            let leave = self.leave.get_or_insert_with(|| Box::pin(sleep(limits::LEAVE_TIME)));
            if leave.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Error::Closed);
            }
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..limits::READS_IN_A_ROW {
                match self.carrier.poll_read(cx, scratch) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => return Poll::Ready(Error::Lost("the other end is gone".into())),
                    Poll::Ready(Err(why)) => return Poll::Ready(why),
                    Poll::Ready(Ok(length)) => {
                        self.silent_ticks = 0;
                        let more = u64::try_from(length).unwrap_or(0);
                        self.shared.received_bytes.fetch_add(more, Ordering::Relaxed);
                        if self.leave.is_some() {
                            continue; // nobody listens any more
                        }
                        if let Err(why) = self.on_sealed(scratch.get_mut(..length).unwrap_or_default()) {
                            return Poll::Ready(why);
                        }
                    }
                }
            }
            cx.waker().wake_by_ref(); // the others' turn
            Poll::Pending
        })
    }

    /// Open the messages that `came` completes.
    fn on_sealed(&mut self, came: &mut [u8]) -> Result<(), Error> {
        if self.sealed.is_empty() {
            let whole = self.open_all(came)?;
            self.sealed.extend_from_slice(came.get(whole..).unwrap_or_default());
        } else {
            let mut sealed = std::mem::take(&mut self.sealed);
            sealed.extend_from_slice(came);
            let whole = self.open_all(&mut sealed)?;
            sealed.drain(..whole);
            self.sealed = sealed;
        }
        Ok(())
    }

    /// Open the whole messages at the start of `sealed`, and say how many bytes they took.
    fn open_all(&mut self, sealed: &mut [u8]) -> Result<usize, Error> {
        let mut at = 0;
        while let Some(length) = Opener::length(sealed.get(at..).unwrap_or_default())
            && let Some(message) = sealed.get_mut(at..at + length)
        {
            at += length;
            let plain = self.opener.open(message)?;
            // Not through `self`: `plain` lies in what came.
            on_plain(&mut self.parser, &self.shared, &self.offer, plain)?;
        }
        Ok(at)
    }

    fn on_plain(&mut self, plain: &[u8]) -> Result<(), Error> {
        on_plain(&mut self.parser, &self.shared, &self.offer, plain)
    }

    fn tick(&mut self) -> Result<(), Error> {
        let busy = self.shared.work(|table| {
            table.tick();
            table.len() > 0
        });
        if !busy {
            self.silent_ticks = 0;
            return Ok(());
        }
        self.silent_ticks += 1;
        if self.silent_ticks >= limits::SILENT_TICKS {
            return Err(Error::Lost("nothing came from the other end".into()));
        }
        if self.silent_ticks >= limits::PING_AFTER_TICKS {
            self.shared.ping(None);
        }
        Ok(())
    }
}

fn on_plain(
    parser: &mut Parser,
    shared: &Shared,
    offer: &mpsc::Sender<u32>,
    plain: &[u8],
) -> Result<(), Error> {
    let mut rest = plain;
    let (done, opened, pongs, end) = shared.work(|table| {
        let mut read = || {
            while let Some(event) = parser.next(&mut rest).map_err(|()| "what is no yamux frame")? {
                match event {
                    Event::Frame(header) => table.on_frame(header)?,
                    Event::Piece { of, data, last } => table.on_piece(of, data, last)?,
                }
            }
            Ok::<(), &'static str>(())
        };
        let done = read();
        (done, std::mem::take(&mut table.opened), std::mem::take(&mut table.pongs), table.end.clone())
    });
    for id in opened {
        if offer.try_send(id).is_err() {
            shared.work(|table| table.reset(id)); // nobody takes them up: they must not pile up
        }
    }
    if !pongs.is_empty() {
        shared.on_pongs(&pongs);
    }
    if let Err(what) = done {
        let away = Header { kind: Kind::GoAway, flags: 0, stream: 0, value: VIOLATION };
        shared.send(&mut lock(&shared.out), &[away]);
        return Err(Error::Lost(format!("the other end sent {what}")));
    }
    // Our own close goes on until the other end has had time to read it.
    match end {
        Some(why) if !lock(&shared.out).closing => Err(why),
        _ => Ok(()),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
