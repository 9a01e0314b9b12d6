//! The processor as a device: its threads, its instruction set and the memory that operations work in.

use std::num::NonZeroUsize;

use crate::isa::Isa;
use crate::matrix::Activation;
use crate::shared::Shared;
use crate::threads::{Pieces, Threads};

/// What operations run on. One operation at a time uses all its threads.
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) threads: Threads,
    pub(crate) scratch: Scratch,
}

/// Memory that operations use and leave dirty; it grows to the largest step and stays.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Rows of an input after its norm or gate, then each thread's part of attention.
    pub(crate) values: Vec<f32>,
    /// Rows of an input in 8 bits.
    pub(crate) activations: Vec<Activation>,
    /// Rows of an input in the form of ggml that a matrix multiplies.
    pub(crate) words: Vec<u64>,
    /// A product's work.
    pub(crate) pieces: Vec<Pieces>,
    /// Attention's work list.
    pub(crate) tiles: Vec<crate::attention::Tile>,
}

impl Cpu {
    /// With `threads` threads, the caller's included, each on a core of its own at best.
    ///
    /// # Panics
    /// Where this machine lacks `isa`.
    pub fn new(threads: NonZeroUsize, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this machine lacks {isa}");
        Self { isa, threads: Threads::new(threads.get()), scratch: Scratch::default() }
    }

    /// Calls `each` once with the number and the `width` elements of each row of `rows`, on all threads. A panic in it
    /// ends the process.
    ///
    /// # Panics
    /// Where `rows` has no whole number of rows.
    pub fn each_row(&mut self, rows: &mut [f32], width: usize, each: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        assert!(rows.len().is_multiple_of(width), "{} elements are no rows of {width}", rows.len());
        let pieces = Pieces::single(rows.len() / width);
        let rows = Shared::new(rows);
        self.threads.run(&|worker| {
            let mut piece = worker.next(&pieces, None);
            while let Some(range) = piece {
                for row in range.clone() {
                    // SAFETY: each row belongs to one piece.
                    each(row, unsafe { rows.slice(row * width, width) });
                }
                piece = worker.next(&pieces, Some(range));
            }
        });
    }

    /// The instruction set that its kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }
}

/// At least `len` elements of `buffer`; old ones keep their values.
pub(crate) fn grown<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_taken_once() {
        for threads in 1..4 {
            let mut cpu = Cpu::new(NonZeroUsize::new(threads).unwrap(), Isa::Scalar);
            for count in [0, 1, 2, 7, 40] {
                let mut rows = vec![0.0; count * 3];
                cpu.each_row(&mut rows, 3, &|row, values| {
                    values.iter_mut().for_each(|value| *value += row as f32 + 1.0)
                });
                let expected: Vec<f32> = (0..count * 3).map(|i| (i / 3 + 1) as f32).collect();
                assert_eq!(rows, expected, "{threads} threads");
            }
        }
    }
}
