//! From the tokio thread to the one that polls: tokens of operations worth another look, and one wake-up for many.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Rings when the polling thread should look at [`Bell::drain`]: writes to an eventfd, a socket, whatever it sleeps on.
pub trait Ring: Send + Sync {
    /// Wake the polling thread; never blocks.
    fn ring(&self);
}

/// The tokens that are ready, and the wake-up that goes with the first of them.
pub struct Bell {
    ready: Mutex<Vec<u64>>,
    rung: AtomicBool,
    next: AtomicU64,
    ring: Box<dyn Ring>,
}

impl Bell {
    /// A bell that rings by `ring`.
    pub fn new(ring: Box<dyn Ring>) -> Arc<Self> {
        Arc::new(Self {
            ready: Mutex::default(),
            rung: AtomicBool::new(false),
            next: AtomicU64::new(0),
            ring,
        })
    }

    /// A waker of its own for one waiting side of something.
    pub fn clapper(self: &Arc<Self>) -> Clapper {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let inner = Arc::new(Inner { token, waiting: AtomicBool::new(false), bell: Arc::clone(self) });
        Clapper { token, waker: Waker::from(Arc::clone(&inner)), inner }
    }

    /// Append the tokens that became ready since the last call. Whoever sleeps on a handle clears it before.
    pub fn drain(&self, into: &mut Vec<u64>) {
        // Before the tokens are taken: one that comes after them rings again.
        self.rung.store(false, Ordering::SeqCst);
        into.append(&mut self.ready.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The waker of one waiting side.
pub struct Clapper {
    token: u64,
    waker: Waker,
    inner: Arc<Inner>,
}

impl Clapper {
    /// What [`Bell::drain`] gives when this side is worth another look.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The waker to poll with. Wakes at most once until it is asked for again, so the bell holds each token once.
    pub fn waker(&self) -> &Waker {
        self.inner.waiting.store(true, Ordering::SeqCst);
        &self.waker
    }
}

struct Inner {
    token: u64,
    waiting: AtomicBool,
    bell: Arc<Bell>,
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.waiting.swap(false, Ordering::SeqCst) {
            return;
        }
        self.bell.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.token);
        if !self.bell.rung.swap(true, Ordering::SeqCst) {
            self.bell.ring.ring();
        }
    }
}

/// A [`Ring`] that wakes nobody: for those who poll by other means.
pub struct Silent;

impl Ring for Silent {
    fn ring(&self) {}
}

/// A [`Ring`] that writes eight bytes to a handle, as an eventfd wants them.
pub struct Writes<W: io::Write + Send>(pub Mutex<W>);

impl<W: io::Write + Send> Ring for Writes<W> {
    fn ring(&self) {
        // A handle that is full already wakes; one that is closed has nobody to wake.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(&1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Count(Arc<AtomicUsize>);
    impl Ring for Count {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn rings_once_for_many_and_gives_each_token_once() {
        let rings = Arc::new(AtomicUsize::new(0));
        let bell = Bell::new(Box::new(Count(Arc::clone(&rings))));
        let (one, two) = (bell.clapper(), bell.clapper());
        let (first, second) = (one.waker().clone(), two.waker().clone());
        first.wake_by_ref();
        first.wake_by_ref();
        second.wake();
        let mut ready = Vec::new();
        bell.drain(&mut ready);
        assert_eq!((ready, rings.load(Ordering::SeqCst)), (vec![one.token(), two.token()], 1));
        first.wake_by_ref(); // not asked for since
        let mut ready = Vec::new();
        bell.drain(&mut ready);
        assert_eq!((ready, rings.load(Ordering::SeqCst)), (vec![], 1));
        one.waker().wake_by_ref();
        bell.drain(&mut Vec::new());
        assert_eq!(rings.load(Ordering::SeqCst), 2);
    }
}
