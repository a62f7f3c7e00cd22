//! quinn's tasks, driven by whoever gives them work: a message leaves in the very call that sends it.
//!
//! quinn wakes a task of the runtime to send what was written to a stream. From another thread that is a wake-up of the
//! runtime's thread before the first packet leaves, some twenty microseconds and much more when that thread's memory is
//! cold. Here the task is polled at once on the thread that wrote, unless the runtime is just polling it. All else, what
//! comes in and what is due by time, stays with the runtime.

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;
use tokio::runtime::Handle;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// The tasks that were woken on this thread while it is [`at_once`]; `None` while it is not.
    static WOKEN: RefCell<Option<Vec<Arc<Task>>>> = const { RefCell::new(None) };
}

/// Do this, and what it gives quinn's tasks to do, before returning.
pub(super) fn at_once<T>(act: impl FnOnce() -> T) -> T {
    /// Leaves nothing that was woken behind, whatever happens.
    struct Drive;
    impl Drop for Drive {
        fn drop(&mut self) {
            for task in WOKEN.replace(None).unwrap_or_default() {
                task.drive();
            }
        }
    }
    WOKEN.replace(Some(Vec::new()));
    let _drive = Drive;
    act()
}

/// tokio, with tasks that others may drive, too.
#[derive(Debug)]
pub(super) struct Driving {
    tokio: Weak<Handle>,
}

impl Driving {
    /// On a runtime that somebody else keeps.
    pub(super) fn on(tokio: Weak<Handle>) -> Self {
        Self { tokio }
    }
}

impl Runtime for Driving {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, work: Work) {
        let task = Arc::new(Task {
            work: Mutex::new(Some(work)),
            scheduled: Mutex::new(None),
            tokio: self.tokio.clone(),
        });
        if let Some(tokio) = self.tokio.upgrade() {
            tokio.spawn(Scheduled(task));
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// One of quinn's tasks.
struct Task {
    /// `None` when it is done.
    work: Mutex<Option<Work>>,
    /// How tokio is told to poll it.
    scheduled: Mutex<Option<Waker>>,
    tokio: Weak<Handle>,
}

/// The same as a task of the runtime. When it goes, the work goes: nothing else would break the circle of a task that
/// holds a connection that holds the task's waker.
struct Scheduled(Arc<Task>);

impl Future for Scheduled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_scheduled(cx)
    }
}

impl Drop for Scheduled {
    fn drop(&mut self) {
        let work = lock(&self.0.work).take();
        drop(work);
    }
}

impl Task {
    fn poll_scheduled(self: &Arc<Self>, cx: &Context<'_>) -> Poll<()> {
        {
            let mut scheduled = lock(&self.scheduled);
            if !scheduled.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *scheduled = Some(cx.waker().clone());
            }
        }
        self.poll(&mut lock(&self.work))
    }

    /// Poll it here and now, or leave it to the runtime, which is at it.
    fn drive(self: &Arc<Self>) {
        let mut work = match self.work.try_lock() {
            Ok(work) => work,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.schedule(),
        };
        let Some(tokio) = self.tokio.upgrade() else { return };
        let _inside = tokio.enter();
        if self.poll(&mut work).is_ready() {
            self.schedule(); // its task in the runtime ends, too
        }
    }

    fn poll(self: &Arc<Self>, slot: &mut Option<Work>) -> Poll<()> {
        let Some(work) = slot else { return Poll::Ready(()) };
        let waker = Waker::from(Arc::clone(self));
        let done = work.as_mut().poll(&mut Context::from_waker(&waker));
        if done.is_ready() {
            *slot = None;
        }
        done
    }

    /// Have the runtime poll it. Before it has done so for the first time, it is about to.
    fn schedule(&self) {
        if let Some(waker) = lock(&self.scheduled).as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let ours =
            WOKEN.with_borrow_mut(|woken| woken.as_mut().map(|tasks| tasks.push(Arc::clone(self))).is_some());
        if !ours {
            self.schedule();
        }
    }
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
