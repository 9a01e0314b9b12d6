//! Which formats have panels, how ggml stores their blocks, and how their quants lie in lines.
//!
//! A line holds four bytes a row, as the dot instructions of all sets read them: a word. Words of a block's 32 columns:
//! - 4 bits, four lines: the low halves of line `j` are columns `4j..4j + 4`, the high halves `16 + 4j..20 + 4j`;
//! - 6 bits, six lines: the low four bits as above, then in line `4 + g` the two upper bits of columns `16g + 4i + b` at
//!   bit `2i` of byte `b`;
//! - 8 bits, eight lines: line `j` is columns `4j..4j + 4`.
//!
//! ggml's blocks: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

use super::BLOCK;
use crate::format::Format;

/// What quants stand for. All are unsigned here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `d * (q - 8)`, 4 bits.
    Q4_0,
    /// `d * q + m`, 4 bits.
    Q4_1,
    /// `d * (q - 128)`, 8 bits.
    Q8_0,
    /// `d * step * q - m * step'`, 4 bits, with one d and m for eight blocks.
    Q4K,
    /// `d * step * (q - 32)`, 6 bits, with one d for eight blocks and a step for each half of a block.
    Q6K,
}

impl Kind {
    pub(super) fn of(format: Format) -> Option<Self> {
        match format {
            Format::Q4_0 => Some(Self::Q4_0),
            Format::Q4_1 => Some(Self::Q4_1),
            Format::Q8_0 => Some(Self::Q8_0),
            Format::Q4K => Some(Self::Q4K),
            Format::Q6K => Some(Self::Q6K),
            Format::F32 | Format::F16 | Format::Bf16 | Format::Q5_0 | Format::Q5_1 => None,
            Format::Q2K | Format::Q3K | Format::Q5K | Format::Q8K => None,
        }
    }

    /// Blocks that share f16 factors: a ggml block.
    pub(super) fn group(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 1,
            Self::Q4K | Self::Q6K => 8,
        }
    }

    /// f16 factors of a group.
    pub(super) fn scales(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 | Self::Q6K => 1,
            Self::Q4_1 | Self::Q4K => 2,
        }
    }

    /// Integer factors of a block.
    pub(super) fn steps(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 0,
            Self::Q4K | Self::Q6K => 2,
        }
    }

    /// Lines of a block.
    pub(super) fn lines(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// What the quant `q` of a block's column `column` stands for, given the block's factors.
    pub(super) fn value(
        self,
        q: i32,
        column: usize,
        scale: &impl Fn(usize) -> f32,
        step: &impl Fn(usize) -> f32,
    ) -> f32 {
        match self {
            Self::Q4_0 => scale(0) * (q - 8) as f32,
            Self::Q4_1 => scale(0) * q as f32 + scale(1),
            Self::Q8_0 => scale(0) * (q - 128) as f32,
            Self::Q4K => scale(0) * step(0) * q as f32 - scale(1) * step(1),
            Self::Q6K => scale(0) * step(column / 16) * (q - 32) as f32,
        }
    }

    /// The f16 factors of a ggml block; those beyond [`Kind::scales`] are void.
    pub(super) fn read_scales(self, bytes: &[u8]) -> [u16; 2] {
        let at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        match self {
            Self::Q4_0 | Self::Q8_0 => [at(0), 0],
            Self::Q4_1 | Self::Q4K => [at(0), at(2)],
            Self::Q6K => [at(208), 0],
        }
    }

    /// The integer factors of block `block` of a ggml block; those beyond [`Kind::steps`] are void.
    pub(super) fn read_steps(self, bytes: &[u8], block: usize) -> [i8; 2] {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => [0, 0],
            Self::Q4K => {
                let packed = &bytes[4..16];
                let (step, min) = match block {
                    0..4 => (packed[block] & 63, packed[block + 4] & 63),
                    _ => (
                        packed[block + 4] & 15 | packed[block - 4] >> 6 << 4,
                        packed[block + 4] >> 4 | packed[block] >> 6 << 4,
                    ),
                };
                [step as i8, min as i8]
            }
            Self::Q6K => [bytes[192 + 2 * block] as i8, bytes[193 + 2 * block] as i8],
        }
    }

    /// The quants of block `block` of a ggml block, by column.
    pub(super) fn read_quants(self, bytes: &[u8], block: usize) -> [u8; BLOCK] {
        let mut quants = [0; BLOCK];
        match self {
            Self::Q4_0 | Self::Q4_1 => {
                let (low, high) = quants.split_at_mut(16);
                let bytes = &bytes[2 * self.scales()..];
                for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            }
            Self::Q8_0 => quants.iter_mut().zip(&bytes[2..]).for_each(|(quant, byte)| *quant = byte ^ 0x80),
            Self::Q4K => {
                let (bytes, shift) = (&bytes[16 + block / 2 * 32..], block % 2 * 4);
                quants.iter_mut().zip(bytes).for_each(|(quant, byte)| *quant = byte >> shift & 15);
            }
            Self::Q6K => {
                let (half, quarter) = (block / 4, block % 4);
                let low = &bytes[64 * half + quarter % 2 * 32..];
                let high = &bytes[128 + 32 * half..];
                for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
                    *quant = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
                }
            }
        }
        quants
    }

    /// A row's word of each line; those beyond [`Kind::lines`] are void.
    pub(super) fn pack(self, quants: &[u8; BLOCK]) -> [[u8; 4]; 8] {
        let mut words = [[0; 4]; 8];
        let bytes = words.as_flattened_mut();
        if self == Self::Q8_0 {
            bytes.copy_from_slice(quants);
            return words;
        }
        let (low, high) = quants.split_at(16);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | high << 4;
        }
        if self == Self::Q6K {
            for (i, quant) in quants.iter().enumerate() {
                bytes[16 + i / 16 * 4 + i % 4] |= quant >> 4 << (i / 4 % 4 * 2);
            }
        }
        words
    }

    /// What [`Kind::pack`] packed.
    pub(super) fn unpack(self, words: &[[u8; 4]]) -> [u8; BLOCK] {
        std::array::from_fn(|column| {
            let (b, word) = (column % 4, column / 4);
            let nibble = || words[word % 4][b] >> (word / 4 * 4) & 15;
            match self {
                Self::Q8_0 => words[word][b],
                Self::Q4_0 | Self::Q4_1 | Self::Q4K => nibble(),
                Self::Q6K => nibble() | (words[4 + word / 4][b] >> (2 * (word % 4)) & 3) << 4,
            }
        })
    }
}
