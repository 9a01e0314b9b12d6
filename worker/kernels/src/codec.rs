//! From f32 to ggml's blocks and back. The formats of 32 elements are rounded here, to the bit as the PyPI package
//! `gguf` rounds them; those of 256, which it does not write, by candle.

use candle_core::quantized::k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, GgmlType};
use half::{bf16, f16};

use crate::format::Format;
use crate::matrix::decode_rows;

/// Decodes the whole blocks of `bytes` to `out`.
///
/// # Panics
/// Where `bytes` are not the blocks of `out.len()` elements.
pub fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(format.row_bytes(out.len()), Some(bytes.len()), "{format} blocks of {} elements", out.len());
    decode_rows(format, bytes, out);
}

/// Appends the blocks of `values` to `out`; false, and nothing appended, where nothing writes the format.
///
/// # Panics
/// Where `values` are no whole number of blocks.
pub fn encode(format: Format, values: &[f32], out: &mut Vec<u8>) -> bool {
    assert!(values.len().is_multiple_of(format.block_elements()), "{} elements of {format}", values.len());
    let blocks = values.as_chunks::<32>().0.iter();
    match format {
        Format::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Format::F16 => out.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        Format::Bf16 => out.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        Format::Q4_0 => blocks.for_each(|block| centred(block, 4, out)),
        Format::Q5_0 => blocks.for_each(|block| centred(block, 5, out)),
        Format::Q4_1 => blocks.for_each(|block| shifted(block, 4, out)),
        Format::Q5_1 => blocks.for_each(|block| shifted(block, 5, out)),
        Format::Q8_0 => blocks.for_each(|block| bytes(block, out)),
        Format::Q2K => candle::<BlockQ2K>(values, out),
        Format::Q3K => candle::<BlockQ3K>(values, out),
        Format::Q4K => candle::<BlockQ4K>(values, out),
        Format::Q5K => candle::<BlockQ5K>(values, out),
        Format::Q6K => candle::<BlockQ6K>(values, out),
        Format::Q8K => return false,
    }
    true
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `d * (q - half)`: the greatest element, with its sign, is the lowest step.
fn centred(block: &[f32; 32], bits: u32, out: &mut Vec<u8>) {
    let half = (1_i32 << (bits - 1)) as f32;
    let greatest = block.iter().fold(0.0_f32, |most, value| if value.abs() > most.abs() { *value } else { most });
    let d = greatest / -half;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    pack(block.map(|value| (value * id + (half + 0.5)) as u8), bits, out);
}

/// `d * q + m`.
fn shifted(block: &[f32; 32], bits: u32, out: &mut Vec<u8>) {
    let (least, most) = block.iter().fold((f32::MAX, f32::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
    let d = (most - least) / ((1_i32 << bits) - 1) as f32;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(least).to_le_bytes());
    pack(block.map(|value| ((value - least) * id + 0.5) as u8), bits, out);
}

/// The fifth bits, where there are any, then pairs of the lower four.
fn pack(quants: [u8; 32], bits: u32, out: &mut Vec<u8>) {
    let quants = quants.map(|quant| quant.min(if bits == 4 { 15 } else { 31 }));
    if bits == 5 {
        let fifths = quants.iter().enumerate().fold(0_u32, |all, (i, quant)| all | u32::from(quant >> 4) << i);
        out.extend(fifths.to_le_bytes());
    }
    let (low, high) = quants.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

/// `d * q`, 8 bits.
fn bytes(block: &[f32; 32], out: &mut Vec<u8>) {
    let d = block.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(block.iter().flat_map(|value| ((value * id).round() as i8).to_le_bytes()));
}

fn candle<T: GgmlType>(values: &[f32], out: &mut Vec<u8>) {
    let mut blocks = vec![T::zeros(); values.len() / T::BLCK_SIZE];
    T::from_float(values, &mut blocks);
    // SAFETY: ggml's blocks are plain old data without padding.
    out.extend_from_slice(unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of_val(&blocks[..])) });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A block decodes to within a step of what it was made of.
        #[test]
        fn what_is_encoded_decodes(values in prop::collection::vec(-4.0f32..4.0, 256)) {
            for format in Format::ALL.into_iter().filter(|format| *format != Format::Q8K) {
                let mut encoded = Vec::new();
                prop_assert!(encode(format, &values, &mut encoded));
                prop_assert_eq!(Some(encoded.len()), format.row_bytes(256));
                let mut decoded = vec![0.0; 256];
                decode(format, &encoded, &mut decoded);
                let step = match format {
                    Format::F32 => 1e-9,
                    Format::F16 | Format::Bf16 => 0.02,
                    Format::Q8_0 | Format::Q6K => 0.3,
                    Format::Q2K => 3.0,
                    Format::Q3K => 2.0,
                    _ => 0.9,
                };
                for (value, decoded) in values.iter().zip(decoded) {
                    prop_assert!((value - decoded).abs() <= step, "{}: {} became {}", format, value, decoded);
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for format in Format::ALL.into_iter().filter(|format| *format != Format::Q8K) {
            let (mut encoded, mut decoded) = (Vec::new(), vec![1.0; 256]);
            assert!(encode(format, &[0.0; 256], &mut encoded));
            decode(format, &encoded, &mut decoded);
            assert!(decoded.iter().all(|value| *value == 0.0), "{format}");
        }
        assert!(!encode(Format::Q8K, &[0.0; 256], &mut Vec::new()));
    }
}
