//! Weights in ggml's own layout, multiplied by candle's dot products: a row of weights and a row of the input at a time. For
//! formats without panels; tests compare the others with it.

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockQ8K,
    GgmlType,
};
use half::{bf16, f16};

use crate::format::Format;

/// Rows of ggml blocks.
pub(super) struct Plain(Box<dyn Rows>);

trait Rows: Send + Sync {
    fn rows(&self) -> usize;
    fn bytes(&self) -> usize;
    fn row(&self, index: usize, out: &mut [f32]);
    fn activation_words(&self) -> usize;
    fn activate(&self, values: &[f32], to: &mut [u64]);
    fn multiply(&self, start: usize, activation: &[u64], out: &mut [f32], add: bool);
}

struct Blocks<T> {
    blocks: Vec<T>,
    cols: usize,
}

impl Plain {
    /// `parts` are whole rows of `cols` elements in `format`.
    pub(super) fn new(format: Format, cols: usize, parts: &[&[u8]]) -> Self {
        Self(match format {
            Format::F32 => Blocks::<f32>::boxed(cols, parts),
            Format::F16 => Blocks::<f16>::boxed(cols, parts),
            Format::Bf16 => Blocks::<bf16>::boxed(cols, parts),
            Format::Q4_0 => Blocks::<BlockQ4_0>::boxed(cols, parts),
            Format::Q4_1 => Blocks::<BlockQ4_1>::boxed(cols, parts),
            Format::Q5_0 => Blocks::<BlockQ5_0>::boxed(cols, parts),
            Format::Q5_1 => Blocks::<BlockQ5_1>::boxed(cols, parts),
            Format::Q8_0 => Blocks::<BlockQ8_0>::boxed(cols, parts),
            Format::Q2K => Blocks::<BlockQ2K>::boxed(cols, parts),
            Format::Q3K => Blocks::<BlockQ3K>::boxed(cols, parts),
            Format::Q4K => Blocks::<BlockQ4K>::boxed(cols, parts),
            Format::Q5K => Blocks::<BlockQ5K>::boxed(cols, parts),
            Format::Q6K => Blocks::<BlockQ6K>::boxed(cols, parts),
            Format::Q8K => Blocks::<BlockQ8K>::boxed(cols, parts),
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.0.rows()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Row `index` as f32.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        self.0.row(index, out);
    }

    /// Words that an input row takes once activated.
    pub(super) fn activation_words(&self) -> usize {
        self.0.activation_words()
    }

    /// An input row in the form that the dot product wants.
    pub(super) fn activate(&self, values: &[f32], to: &mut [u64]) {
        self.0.activate(values, to);
    }

    /// One input row times the weight rows from `start` on, one for each of `out`.
    pub(super) fn multiply(&self, start: usize, activation: &[u64], out: &mut [f32], add: bool) {
        self.0.multiply(start, activation, out, add);
    }
}

impl<T: GgmlType + 'static> Blocks<T> {
    fn boxed(cols: usize, parts: &[&[u8]]) -> Box<dyn Rows> {
        let count = parts.iter().map(|part| part.len() / size_of::<T>()).sum();
        let mut blocks = Vec::<T>::with_capacity(count);
        for part in parts {
            let start = blocks.len();
            let here = part.len() / size_of::<T>();
            // SAFETY: ggml's blocks are plain old data of this size, for which any bytes are valid; the capacity is
            // the sum over the parts.
            unsafe {
                let to = blocks.as_mut_ptr().add(start).cast::<u8>();
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, here * size_of::<T>());
                blocks.set_len(start + here);
            }
        }
        Box::new(Self { blocks, cols })
    }

    fn row_blocks(&self) -> usize {
        self.cols / T::BLCK_SIZE
    }

    fn activation_blocks(&self) -> usize {
        self.cols / T::VecDotType::BLCK_SIZE
    }
}

impl<T: GgmlType + 'static> Rows for Blocks<T> {
    fn rows(&self) -> usize {
        self.blocks.len() / self.row_blocks()
    }

    fn bytes(&self) -> usize {
        self.blocks.len() * size_of::<T>()
    }

    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(&self.blocks[index * self.row_blocks()..][..self.row_blocks()], out);
    }

    fn activation_words(&self) -> usize {
        (self.activation_blocks() * size_of::<T::VecDotType>()).div_ceil(size_of::<u64>())
    }

    fn activate(&self, values: &[f32], to: &mut [u64]) {
        assert_eq!(to.len(), self.activation_words(), "an activation of another size");
        const { assert!(align_of::<T::VecDotType>() <= align_of::<u64>()) };
        // SAFETY: large enough and aligned by the lines above; plain old data, valid whatever the bytes are.
        let to = unsafe {
            std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<T::VecDotType>(), self.activation_blocks())
        };
        T::VecDotType::from_float(values, to);
    }

    fn multiply(&self, start: usize, activation: &[u64], out: &mut [f32], add: bool) {
        assert_eq!(activation.len(), self.activation_words(), "an activation of another size");
        // SAFETY: as in `activate`.
        let activation = unsafe {
            std::slice::from_raw_parts(activation.as_ptr().cast::<T::VecDotType>(), self.activation_blocks())
        };
        let weights = self.blocks[start * self.row_blocks()..].chunks_exact(self.row_blocks());
        for (out, weights) in out.iter_mut().zip(weights) {
            let product = T::vec_dot(self.cols, weights, activation);
            *out = if add { *out + product } else { product };
        }
    }
}
