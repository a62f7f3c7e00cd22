//! A few threads that help with the parts of one computation. Which thread takes a part changes nothing in its result.
//!
//! They sleep in between: who asks works, too, and never waits for a thread that has not begun, so on a busy machine
//! nothing is lost by having asked for help that does not come.
#![allow(unsafe_code)]

use std::hint::spin_loop;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Threads beside those that ask, at most.
const MAX_HELPERS: usize = 63;

/// How often one that has nothing left to do looks whether its helpers are through, before it sleeps as well: what they
/// are at is one part, mostly shorter than it takes to be woken.
const LOOKS: usize = 100;

/// Pauses of the CPU between two looks.
const PAUSES: usize = 16;

type Part<'a> = &'a (dyn Fn(usize) + Sync);

/// One computation that is under way.
struct Job {
    run: Part<'static>,
    next: AtomicUsize,
    parts: usize,
}

impl Job {
    fn work(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            (self.run)(part);
        }
    }
}

#[derive(Default)]
struct State {
    job: Option<&'static Job>,
    /// Helpers that may still join.
    wanted: usize,
    /// Helpers at work on it.
    busy: usize,
    /// Helpers that there are.
    started: usize,
    /// Whether a helper's part panicked.
    broken: bool,
}

struct Pool {
    state: Mutex<State>,
    asked: Condvar,
    through: Condvar,
    /// Held by whoever is being helped.
    turn: Mutex<()>,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        state: Mutex::default(),
        asked: Condvar::new(),
        through: Condvar::new(),
        turn: Mutex::default(),
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Call `run` once for each number below `parts`, on up to `threads` threads, this one among them.
///
/// A process that was forked has no helpers and works alone.
pub(crate) fn share(threads: usize, parts: usize, run: Part<'_>) {
    let helpers = threads.min(parts).saturating_sub(1).min(MAX_HELPERS);
    let pool = pool();
    // Two that ask at once are rare; the second does its work alone.
    let Some(_turn) = (helpers > 0).then(|| pool.turn.try_lock().ok()).flatten() else {
        (0..parts).for_each(run);
        return;
    };
    // SAFETY: only the lifetimes change. `Helped` waits, also while a panic unwinds, until no helper has the job any more,
    // and takes it from where they find it, before either `run` or the job itself is gone.
    let job =
        Job { run: unsafe { transmute::<Part<'_>, Part<'static>>(run) }, next: AtomicUsize::new(0), parts };
    // SAFETY: as above.
    let shared = unsafe { transmute::<&Job, &'static Job>(&job) };
    let helped = Helped::by(pool, shared, helpers);
    job.work();
    drop(helped);
}

/// While this lives, helpers may work on a job.
struct Helped(&'static Pool);

impl Helped {
    fn by(pool: &'static Pool, job: &'static Job, helpers: usize) -> Self {
        let mut state = locked(&pool.state);
        while state.started < helpers
            && thread::Builder::new().name("swarmnode-math".into()).spawn(help).is_ok()
        {
            state.started += 1;
        }
        state.job = Some(job);
        state.wanted = helpers;
        state.broken = false;
        drop(state);
        (0..helpers).for_each(|_| pool.asked.notify_one());
        Self(pool)
    }
}

impl Drop for Helped {
    fn drop(&mut self) {
        let mut state = locked(&self.0.state);
        state.job = None;
        state.wanted = 0;
        let mut looks = LOOKS;
        while state.busy > 0 {
            if looks > 0 {
                looks -= 1;
                drop(state);
                (0..PAUSES).for_each(|_| spin_loop());
                state = locked(&self.0.state);
            } else {
                state = self.0.through.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let broken = state.broken;
        drop(state);
        assert!(!broken || thread::panicking(), "a part of the computation panicked on another thread");
    }
}

/// What a helper does all its life.
fn help() {
    let pool = pool();
    let mut state = locked(&pool.state);
    loop {
        match state.job {
            Some(job) if state.wanted > 0 => {
                state.wanted -= 1;
                state.busy += 1;
                drop(state);
                // What a part was at is never looked at again: whoever asked panics as well.
                let broken = catch_unwind(AssertUnwindSafe(|| job.work())).is_err();
                state = locked(&pool.state);
                state.broken |= broken;
                state.busy -= 1;
                if state.busy == 0 {
                    pool.through.notify_one();
                }
            }
            _ => state = pool.asked.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}
