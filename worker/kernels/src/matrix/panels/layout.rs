//! Which formats have panels, how ggml stores their blocks, and how their quants lie in lines.
//!
//! A line holds four bytes a row, as the dot instructions of all sets read them: a word. Words of a block's 32 columns:
//! - 4 bits, four lines, halves: the low halves of line `j` are columns `4j..4j + 4`, the high halves `16 + 4j..20 + 4j`;
//! - 2 bits, two lines, quarters: line `g` has the bits of column `16g + 4i + b` at bit `2i` of byte `b`;
//! - 1 bit, one line, eighths: the bit of column `4j + b` is bit `j` of byte `b`;
//! - 8 bits, eight lines: line `j` is columns `4j..4j + 4`;
//! - 3 bits: quarters of the upper two, then eighths of the lowest; 5 bits: halves of the lower four, then eighths of the
//!   highest; 6 bits: halves of the lower four, then quarters of the upper two.
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
    /// `d * (q - 16)`, 5 bits.
    Q5_0,
    /// `d * q + m`, 5 bits.
    Q5_1,
    /// `d * (q - 128)`, 8 bits.
    Q8_0,
    /// `d * step * q - m * step'`, 2 bits, with one d and m for eight blocks and both steps, 4 bits each, for each half of
    /// a block.
    Q2K,
    /// `d * step * (q - 4)`, 3 bits, with one d for eight blocks and a step for each half of a block.
    Q3K,
    /// `d * step * q - m * step'`, 4 bits, with one d and m for eight blocks.
    Q4K,
    /// The same, 5 bits.
    Q5K,
    /// `d * step * (q - 32)`, 6 bits, with one d for eight blocks and a step for each half of a block.
    Q6K,
}

impl Kind {
    pub(super) fn of(format: Format) -> Option<Self> {
        match format {
            Format::Q4_0 => Some(Self::Q4_0),
            Format::Q4_1 => Some(Self::Q4_1),
            Format::Q5_0 => Some(Self::Q5_0),
            Format::Q5_1 => Some(Self::Q5_1),
            Format::Q8_0 => Some(Self::Q8_0),
            Format::Q2K => Some(Self::Q2K),
            Format::Q3K => Some(Self::Q3K),
            Format::Q4K => Some(Self::Q4K),
            Format::Q5K => Some(Self::Q5K),
            Format::Q6K => Some(Self::Q6K),
            Format::F32 | Format::F16 | Format::Bf16 | Format::Q8K => None,
        }
    }

    /// Blocks that share f16 factors: a ggml block.
    pub(super) fn group(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 1,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 8,
        }
    }

    /// f16 factors of a group.
    pub(super) fn scales(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Q3K | Self::Q6K => 1,
            Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K => 2,
        }
    }

    /// Integer factors of a block.
    pub(super) fn steps(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 0,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 2,
        }
    }

    /// Lines of a block.
    pub(super) fn lines(self) -> usize {
        match self {
            Self::Q2K => 2,
            Self::Q3K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
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
        step: &impl Fn(usize) -> i8,
    ) -> f32 {
        let factor = |i| f32::from(step(i));
        match self {
            Self::Q4_0 => scale(0) * (q - 8) as f32,
            Self::Q5_0 => scale(0) * (q - 16) as f32,
            Self::Q4_1 | Self::Q5_1 => scale(0) * q as f32 + scale(1),
            Self::Q8_0 => scale(0) * (q - 128) as f32,
            Self::Q2K => {
                let both = step(column / 16) as u8 ^ 0x80;
                scale(0) * f32::from(both & 15) * q as f32 - scale(1) * f32::from(both >> 4)
            }
            Self::Q3K => scale(0) * factor(column / 16) * (q - 4) as f32,
            Self::Q4K | Self::Q5K => scale(0) * factor(0) * q as f32 - scale(1) * factor(1),
            Self::Q6K => scale(0) * factor(column / 16) * (q - 32) as f32,
        }
    }

    /// The f16 factors of a ggml block; those beyond [`Kind::scales`] are void.
    pub(super) fn read_scales(self, bytes: &[u8]) -> [u16; 2] {
        let at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => [at(0), 0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => [at(0), at(2)],
            Self::Q2K => [at(80), at(82)],
            Self::Q3K => [at(108), 0],
            Self::Q6K => [at(208), 0],
        }
    }

    /// The integer factors of block `block` of a ggml block; those beyond [`Kind::steps`] are void.
    pub(super) fn read_steps(self, bytes: &[u8], block: usize) -> [i8; 2] {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => [0, 0],
            // Shifted down to the range of signed bytes, as the lanes read them.
            Self::Q2K => [bytes[2 * block], bytes[2 * block + 1]].map(|both| (both ^ 0x80) as i8),
            Self::Q3K => [2 * block, 2 * block + 1].map(|i| {
                let packed = &bytes[96..108];
                let low = packed[i % 8] >> (i / 8 * 4) & 15;
                (low | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4) as i8 - 32
            }),
            Self::Q4K | Self::Q5K => {
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
        let nibble = |bytes: &[u8], i: usize| bytes[i % 16] >> (i / 16 * 4) & 15;
        // One bit a column, behind the factors.
        let fifth = |bytes: &[u8], i: usize| (bytes[i / 8] >> (i % 8) & 1) << 4;
        std::array::from_fn(|i| match self {
            Self::Q4_0 | Self::Q4_1 => nibble(&bytes[2 * self.scales()..], i),
            Self::Q5_0 | Self::Q5_1 => {
                let bytes = &bytes[2 * self.scales()..];
                nibble(&bytes[4..], i) | fifth(bytes, i)
            }
            Self::Q8_0 => bytes[2 + i] ^ 0x80,
            Self::Q2K => bytes[16 + block / 4 * 32 + i] >> (block % 4 * 2) & 3,
            Self::Q3K => bytes[32 + block / 4 * 32 + i] >> (block % 4 * 2) & 3 | (bytes[i] >> block & 1) << 2,
            Self::Q4K => bytes[16 + block / 2 * 32 + i] >> (block % 2 * 4) & 15,
            Self::Q5K => bytes[48 + block / 2 * 32 + i] >> (block % 2 * 4) & 15 | (bytes[16 + i] >> block & 1) << 4,
            Self::Q6K => {
                let (half, quarter) = (block / 4, block % 4);
                let low = bytes[64 * half + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                low | (bytes[128 + 32 * half + i] >> (2 * quarter) & 3) << 4
            }
        })
    }

    /// A row's word of each line; those beyond [`Kind::lines`] are void.
    pub(super) fn pack(self, quants: &[u8; BLOCK]) -> [[u8; 4]; 8] {
        let mut words = [[0; 4]; 8];
        let bytes = words.as_flattened_mut();
        for (i, quant) in quants.iter().enumerate() {
            let mut put = |part: Part| bytes[part.byte] |= (quant >> part.from & part.mask) << part.to;
            self.parts(i).into_iter().flatten().for_each(&mut put);
        }
        words
    }

    /// What [`Kind::pack`] packed.
    pub(super) fn unpack(self, words: &[[u8; 4]]) -> [u8; BLOCK] {
        let bytes = words.as_flattened();
        std::array::from_fn(|i| {
            let get = |part: Part| (bytes[part.byte] >> part.to & part.mask) << part.from;
            self.parts(i).into_iter().flatten().map(get).fold(0, |quant, bits| quant | bits)
        })
    }

    /// Where the bits of column `i` lie.
    fn parts(self, i: usize) -> [Option<Part>; 2] {
        let halves = Part { from: 0, mask: 15, byte: i % 16, to: i / 16 * 4 };
        let quarters = |line: usize, from| Part { from, mask: 3, byte: 4 * (line + i / 16) + i % 4, to: i / 4 % 4 * 2 };
        let eighths = |line: usize, from| Part { from, mask: 1, byte: 4 * line + i % 4, to: i / 4 };
        match self {
            Self::Q8_0 => [Some(Part { from: 0, mask: 255, byte: i, to: 0 }), None],
            Self::Q2K => [Some(quarters(0, 0)), None],
            Self::Q3K => [Some(quarters(0, 1)), Some(eighths(2, 0))],
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => [Some(halves), None],
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => [Some(halves), Some(eighths(4, 4))],
            Self::Q6K => [Some(halves), Some(quarters(4, 4))],
        }
    }
}

/// Some bits of a quant, from bit `from` on, at bit `to` of a row's byte `byte`.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: usize,
    mask: u8,
    byte: usize,
    to: usize,
}
