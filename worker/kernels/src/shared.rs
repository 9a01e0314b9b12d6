//! A mutable slice that several threads write, each its own places.

use std::marker::PhantomData;

/// A mutable slice whose parts are handed out by index.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: what is handed out is disjoint by the contract of `slice`, so sharing it is sharing disjoint `&mut [T]`.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// `len` elements from `from` on.
    ///
    /// # Safety
    /// While the result lives, no other slice that was handed out overlaps it.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from <= self.len && len <= self.len - from, "{len} from {from} on exceed {}", self.len);
        // SAFETY: within the slice by the line above, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// All of it, to read.
    ///
    /// # Safety
    /// While the result lives, nothing of it is written.
    pub(crate) unsafe fn all(&self) -> &'a [T] {
        // SAFETY: the whole slice, unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
