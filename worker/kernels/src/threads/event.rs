//! Something that happens again and again, and that threads wait for.

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Turns of spinning before a thread sleeps: some tens of microseconds.
const SPINS: usize = 1_000;

/// Counts how often it has happened.
#[derive(Default)]
pub(super) struct Event {
    count: AtomicU32,
    sleepers: AtomicU32,
}

impl Event {
    pub(super) fn value(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Lets it happen.
    pub(super) fn advance(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // SAFETY: wakes who waits on this address; touches no memory.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.count.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    i32::MAX,
                );
            }
        }
    }

    /// Waits until it has happened since it was at `seen`.
    pub(super) fn wait_past(&self, seen: u32) {
        for _ in 0..SPINS {
            if self.value() != seen {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.count.load(Ordering::SeqCst) == seen {
            // SAFETY: sleeps if the count, which outlives the call, is still `seen`; returns at once otherwise.
            unsafe {
                let forever = ptr::null::<libc::timespec>();
                libc::syscall(
                    libc::SYS_futex,
                    self.count.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    seen,
                    forever,
                );
            }
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}
