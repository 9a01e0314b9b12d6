//! The processor as a device: its threads, its instruction set and the memory that operations work in.

use std::num::NonZeroUsize;

use crate::isa::Isa;
use crate::matrix::Activation;
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
