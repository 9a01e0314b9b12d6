//! Threads that run one job together: they spin for the next one a little while, then sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

/// Turns of spinning before a thread sleeps or yields: some tens of microseconds.
const SPINS: usize = 2_000;

/// A job: called once a thread.
type Job = dyn Fn(Worker<'_>) + Sync;

/// One thread's view of a job.
#[derive(Clone, Copy)]
pub(crate) struct Worker<'a> {
    /// Its number, from 0.
    pub(crate) index: usize,
    /// How many run the job.
    pub(crate) count: usize,
    barrier: &'a Barrier,
}

/// A set of threads; the one that calls [`Threads::run`] is one of them.
pub(crate) struct Threads {
    shared: Arc<State>,
    handles: Vec<JoinHandle<()>>,
}

struct State {
    /// Counts jobs; a change tells the threads to take `job`.
    round: AtomicUsize,
    /// The current job, valid from the change of `round` until `running` is 0.
    job: std::cell::UnsafeCell<Option<&'static Job>>,
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
    barrier: Barrier,
}

// SAFETY: `job` is written only while `running` is 0 and every thread waits for `round`, and read only between.
unsafe impl Sync for State {}

struct Barrier {
    count: usize,
    arrived: AtomicUsize,
    turn: AtomicUsize,
}

impl Threads {
    /// `count` threads, the caller's included.
    pub(crate) fn new(count: usize) -> Self {
        assert!(count > 0, "at least one thread must run");
        let shared = Arc::new(State {
            round: AtomicUsize::new(0),
            job: std::cell::UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (1..count).map(|_| AtomicBool::new(false)).collect(),
            barrier: Barrier { count, arrived: AtomicUsize::new(0), turn: AtomicUsize::new(0) },
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

    /// Runs `job` once on every thread and returns when all have.
    pub(crate) fn run(&mut self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let state = &*self.shared;
        // SAFETY: the reference is gone from `state` before this function returns, that is before `job` ends.
        let forever = unsafe { std::mem::transmute::<&(dyn Fn(Worker<'_>) + Sync), &'static Job>(job) };
        // SAFETY: `running` is 0 and `&mut self` excludes another caller, so no thread reads it now.
        unsafe { *state.job.get() = Some(forever) };
        state.running.store(self.handles.len(), Ordering::Relaxed);
        state.round.fetch_add(1, Ordering::SeqCst);
        for (asleep, handle) in state.asleep.iter().zip(&self.handles) {
            if asleep.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(state.worker(0))));
        if own.is_err() {
            // The others may wait for this thread at a barrier for ever.
            std::process::abort();
        }
        wait(|| state.running.load(Ordering::Acquire) == 0);
        assert!(!state.panicked.load(Ordering::Relaxed), "a kernel thread panicked");
    }
}

impl State {
    fn worker(&self, index: usize) -> Worker<'_> {
        Worker { index, count: self.barrier.count, barrier: &self.barrier }
    }

    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.sleep_until_new(index, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            seen += 1;
            // SAFETY: written before `round` changed; not written again before `running` falls below.
            let job = unsafe { *self.job.get() }.expect("a round starts with a job");
            if catch_unwind(AssertUnwindSafe(|| job(self.worker(index)))).is_err() {
                std::process::abort();
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    fn sleep_until_new(&self, index: usize, seen: usize) {
        let is_new = || self.round.load(Ordering::SeqCst) != seen;
        for _ in 0..SPINS {
            if is_new() {
                return;
            }
            std::hint::spin_loop();
        }
        let asleep = &self.asleep[index - 1];
        asleep.store(true, Ordering::SeqCst);
        while !is_new() {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }
}

impl Worker<'_> {
    /// Waits until every thread of the job has come here.
    pub(crate) fn wait(&self) {
        if self.count == 1 {
            return;
        }
        let turn = self.barrier.turn.load(Ordering::Acquire);
        if self.barrier.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            self.barrier.arrived.store(0, Ordering::Relaxed);
            self.barrier.turn.store(turn.wrapping_add(1), Ordering::Release);
        } else {
            wait(|| self.barrier.turn.load(Ordering::Acquire) != turn);
        }
    }

    /// This thread's part of `total` things, in equal consecutive parts.
    pub(crate) fn part(&self, total: usize) -> std::ops::Range<usize> {
        total * self.index / self.count..total * (self.index + 1) / self.count
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A panic was reported by `run` already.
            let _ = handle.join();
        }
    }
}

/// Spins, then gives the core away between looks: the thread that is waited for may need it.
fn wait(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins % SPINS == 0 { thread::yield_now() } else { std::hint::spin_loop() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_each_job_once_and_waits_for_the_others() {
        for count in 1..5 {
            let mut threads = Threads::new(count);
            for _ in 0..200 {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let before = AtomicUsize::new(0);
                threads.run(&|worker| {
                    before.fetch_add(1, Ordering::Relaxed);
                    worker.wait();
                    assert_eq!(before.load(Ordering::Relaxed), count);
                    worker.wait();
                    calls[worker.index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parts_cover_everything_once() {
        let barrier = Barrier { count: 3, arrived: AtomicUsize::new(0), turn: AtomicUsize::new(0) };
        let parts = (0..3).map(|index| Worker { index, count: 3, barrier: &barrier }.part(10));
        assert_eq!(parts.flatten().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }
}
