//! Threads that run one job together. Nobody waits for a thread that is kept off its core: work is taken in pieces by
//! who is there, and only pieces that are taken are waited for. Who waits spins a little while, then sleeps: an idle set
//! takes no time, and a core that waits goes to the thread that is waited for.

mod event;

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use event::Event;

/// Pieces a thread that work is cut into.
const PIECES: usize = 4;
/// The bit of [`State::gate`] that keeps threads out; those below count the threads inside.
const CLOSED: u32 = 1 << 31;

/// A job: called by the caller's thread, and once by each other thread that comes before the job is done.
type Job = dyn Fn(Worker<'_>) + Sync;

/// One thread's view of a job.
#[derive(Clone, Copy)]
pub(crate) struct Worker<'a> {
    /// Its number, from 0.
    pub(crate) index: usize,
    progress: &'a Event,
}

/// A set of threads; the one that calls [`Threads::run`] is one of them.
pub(crate) struct Threads {
    shared: Arc<State>,
    handles: Vec<JoinHandle<()>>,
}

/// Work that threads take in pieces. A job must do each piece that it takes, and take pieces until none is left.
#[derive(Default)]
pub(crate) struct Pieces {
    next: AtomicUsize,
    /// Things that are done.
    done: AtomicUsize,
    total: usize,
    size: usize,
}

struct State {
    /// Happens when there is a new job in `job`.
    start: Event,
    /// Happens when the last thread leaves a closed job.
    finish: Event,
    /// Happens when the last piece of some work is done.
    progress: Event,
    /// Threads inside the job, and [`CLOSED`].
    gate: AtomicU32,
    /// The current job, valid while the gate is open or a thread is inside.
    job: UnsafeCell<Option<&'static Job>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while the gate is closed and nobody inside, and read only by threads inside.
unsafe impl Sync for State {}

impl Threads {
    /// `count` threads, the caller's included.
    pub(crate) fn new(count: usize) -> Self {
        assert!(count > 0, "at least one thread must run");
        let shared = Arc::new(State {
            start: Event::default(),
            finish: Event::default(),
            progress: Event::default(),
            gate: AtomicU32::new(CLOSED),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
        });
        let handles = (1..count)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let named = thread::Builder::new().name(format!("kernel-{index}"));
                named.spawn(move || shared.serve(index)).expect("the system has room for a thread a core")
            })
            .collect();
        Self { shared, handles }
    }

    pub(crate) fn count(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `job` and returns when all its pieces are done. A job that panics ends the process: other threads may wait
    /// for its pieces for ever.
    pub(crate) fn run(&mut self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let state = &*self.shared;
        // SAFETY: nobody uses the reference once the gate is closed and nobody inside, which this function awaits.
        let forever = unsafe { std::mem::transmute::<&(dyn Fn(Worker<'_>) + Sync), &'static Job>(job) };
        // SAFETY: the gate is closed, nobody is inside, and `&mut self` excludes another caller.
        unsafe { *state.job.get() = Some(forever) };
        let finished = state.finish.value();
        state.gate.store(0, Ordering::Release);
        state.start.advance();
        state.join(0);
        if state.gate.fetch_or(CLOSED, Ordering::AcqRel) != 0 {
            state.finish.wait_past(finished);
        }
    }
}

impl State {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.start.wait_past(seen);
            seen = self.start.value();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let open = |gate| (gate & CLOSED == 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, open).is_err() {
                continue;
            }
            self.join(index);
            if self.gate.fetch_sub(1, Ordering::AcqRel) == CLOSED + 1 {
                self.finish.advance();
            }
        }
    }

    /// Takes part in the job; the caller is inside, or is the one that opened the gate.
    fn join(&self, index: usize) {
        // SAFETY: not written while a thread is inside.
        let job = unsafe { *self.job.get() }.expect("an open gate has a job behind it");
        let worker = Worker { index, progress: &self.progress };
        if catch_unwind(AssertUnwindSafe(|| job(worker))).is_err() {
            std::process::abort();
        }
    }
}

impl Worker<'_> {
    /// The next piece of `pieces`, if one is left, after the one before is done.
    #[inline]
    pub(crate) fn next(&self, pieces: &Pieces, before: Option<Range<usize>>) -> Option<Range<usize>> {
        if let Some(before) = before {
            let done = pieces.done.fetch_add(before.len(), Ordering::AcqRel) + before.len();
            if done == pieces.total {
                self.progress.advance();
            }
        }
        let start = pieces.next.fetch_add(pieces.size, Ordering::Relaxed);
        (start < pieces.total).then(|| start..(start + pieces.size).min(pieces.total))
    }

    /// Waits until all of `pieces` are done.
    pub(crate) fn wait(&self, pieces: &Pieces) {
        loop {
            let seen = self.progress.value();
            if pieces.done.load(Ordering::Acquire) == pieces.total {
                return;
            }
            self.progress.wait_past(seen);
        }
    }
}

impl Pieces {
    /// `total` things for `threads` threads.
    pub(crate) fn new(total: usize, threads: usize) -> Self {
        Self { total, size: total.div_ceil(threads * PIECES).max(1), ..Self::default() }
    }

    /// `total` things, one a piece.
    pub(crate) fn single(total: usize) -> Self {
        Self { total, size: 1, ..Self::default() }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.start.advance();
        for handle in self.handles.drain(..) {
            // A thread ends in no other way than by returning.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_before_those_that_wait_for_it() {
        for count in 1..5 {
            let mut threads = Threads::new(count);
            for round in 0..300 {
                let total = round % 40;
                let (first, second) = (Pieces::new(total, count), Pieces::single(total));
                let done: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                threads.run(&|worker| {
                    let mut piece = worker.next(&first, None);
                    while let Some(range) = piece {
                        range.clone().for_each(|i| assert_eq!(done[i].fetch_add(1, Ordering::Relaxed), 0));
                        piece = worker.next(&first, Some(range));
                    }
                    worker.wait(&first);
                    let mut piece = worker.next(&second, None);
                    while let Some(range) = piece {
                        range.clone().for_each(|i| assert_eq!(done[total - 1 - i].fetch_add(1, Ordering::Relaxed), 1));
                        piece = worker.next(&second, Some(range));
                    }
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_for_a_job_and_for_progress() {
        let mut threads = Threads::new(2);
        for _ in 0..3 {
            let pieces = Pieces::single(2);
            let other = AtomicBool::new(false);
            // Each takes one piece; the second one sleeps long before it is done.
            threads.run(&|worker| {
                let piece = worker.next(&pieces, None);
                if worker.index == 1 {
                    other.store(true, Ordering::SeqCst);
                    thread::sleep(std::time::Duration::from_millis(20));
                }
                while !other.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                assert!(worker.next(&pieces, piece).is_none());
                worker.wait(&pieces);
            });
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
