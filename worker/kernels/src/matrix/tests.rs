//! Products of every format against f64 products of what the weights decode to.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::isa::Isa;

const FORMATS: [Format; 14] = Format::ALL;

/// Even noise in -1..1, the same on every run.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// ggml bytes of `rows` noisy rows: random quants under scales of a sensible size.
fn bytes(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let values = noise(rows as u64 * 31 + cols as u64, rows * cols);
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    match format {
        Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Format::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => {
            let size = format.block_bytes();
            let count = rows * cols / format.block_elements();
            let random = noise(7, count * size);
            let mut out: Vec<u8> = random.iter().map(|v| (v * 128.0) as i8 as u8).collect();
            for (i, block) in out.chunks_exact_mut(size).enumerate() {
                let d = 0.01 + (i % 17) as f32 * 0.002;
                match format {
                    Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => {
                        block[..2].copy_from_slice(&half(d));
                        block[2..4].copy_from_slice(&half(-7.0 * d));
                    }
                    Format::Q2K => {
                        block[80..82].copy_from_slice(&half(d));
                        block[82..].copy_from_slice(&half(d));
                    }
                    Format::Q3K => block[108..].copy_from_slice(&half(d)),
                    Format::Q6K => block[208..].copy_from_slice(&half(d)),
                    Format::Q8K => block[..4].copy_from_slice(&d.to_le_bytes()),
                    _ => block[..2].copy_from_slice(&half(d)),
                }
            }
            out
        }
    }
}

fn in_panels(format: Format) -> bool {
    format != Format::Q8K
}

fn multiply(matrix: &Matrix, isa: Isa, threads: usize, x: &[f32]) -> Vec<f32> {
    let mut cpu = Cpu::new(NonZeroUsize::new(threads).unwrap(), isa);
    let mut out = vec![f32::NAN; x.len() / matrix.cols() * matrix.rows()];
    matrix.multiply(&mut cpu, Input::Plain(x), Output::Store(&mut out));
    out
}

#[test]
fn products_match_f64_products_of_the_decoded_weights() {
    for format in FORMATS {
        for (rows, cols) in [(1, 256), (16, 256), (37, 512), (80, 1024)] {
            let raw = bytes(format, rows, cols);
            let matrix = Matrix::new(cols, &[(format, &raw)]).unwrap();
            let x = noise(3, 3 * cols);
            for isa in Isa::available() {
                let out = multiply(&matrix, isa, 2, &x);
                let mut weights = vec![0.0; cols];
                for row in 0..rows {
                    matrix.row(row, &mut weights);
                    for t in 0..3 {
                        let pairs = weights.iter().zip(&x[t * cols..][..cols]);
                        let (mut exact, mut squares) = (0.0, 0.0);
                        for (&w, &x) in pairs {
                            exact += f64::from(w) * f64::from(x);
                            squares += (f64::from(w) * f64::from(x)).powi(2);
                        }
                        // Candle's products round activations to 8 bits, ours to 16.
                        let bound = if in_panels(format) { 1e-4 } else { 0.03 };
                        let error = (f64::from(out[t * rows + row]) - exact).abs();
                        assert!(error < bound * (squares.sqrt() + 0.03), "{format} {rows}x{cols} {isa}: {error}");
                    }
                }
            }
        }
    }
}

/// An input that 16 bits hold exactly: whole numbers, the greatest of them in every block.
fn whole_numbers(seed: u64, len: usize) -> Vec<f32> {
    const GREATEST: f32 = 32_639.0;
    let mut values: Vec<f32> = noise(seed, len).into_iter().map(|value| (value * GREATEST).round()).collect();
    values.iter_mut().step_by(32).for_each(|value| *value = if *value < 0.0 { -GREATEST } else { GREATEST });
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the format, the shape, the tail and the instruction set.
    #[test]
    fn products_are_those_of_f64_on_the_same_operands(
        format in prop::sample::select(&FORMATS[..]),
        rows in 1usize..50, groups in 1usize..4, m in 1usize..19, threads in 1usize..4, seed in any::<u32>()
    ) {
        // Rows of formats with short blocks may end between the long ones.
        let cols = if format.block_elements() == 256 { groups * 256 } else { groups * 96 + 32 };
        let raw = bytes(format, rows, cols);
        let matrix = Matrix::new(cols, &[(format, &raw)]).unwrap();
        let x = whole_numbers(seed.into(), m * cols);
        for isa in Isa::available() {
            let out = multiply(&matrix, isa, threads, &x);
            let mut weights = vec![0.0; cols];
            for row in 0..rows {
                matrix.row(row, &mut weights);
                for t in 0..m {
                    let terms = weights.iter().zip(&x[t * cols..][..cols]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    // Candle's product rounds the input to 8 bits.
                    let bound = if in_panels(format) { 1e-6 } else { 0.01 };
                    let error = (f64::from(out[t * rows + row]) - exact).abs();
                    prop_assert!(error <= bound * size, "{format} [{rows}, {cols}] × {m} with {isa}: {error} of {size}");
                }
            }
        }
    }
}

#[test]
fn repacked_rows_decode_as_ggml_decodes_them() {
    let cols = 512;
    for format in FORMATS {
        let raw = bytes(format, 35, cols);
        let matrix = Matrix::new(cols, &[(format, &raw)]).unwrap();
        let plain = Plain::new(format, cols, &[&raw]);
        let (mut ours, mut ggml) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..35 {
            matrix.row(row, &mut ours);
            plain.row(row, &mut ggml);
            assert_eq!(ours, ggml, "{format} row {row}");
        }
        let padded = plain.bytes() * 48 / 35;
        assert!(matrix.bytes() <= padded + padded / 25, "{format}: {} bytes", matrix.bytes());
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads_and_any_instruction_set() {
    let cols = 512;
    for format in FORMATS {
        let raw = bytes(format, 53, cols);
        let matrix = Matrix::new(cols, &[(format, &raw)]).unwrap();
        let x = noise(5, 37 * cols);
        let together = multiply(&matrix, Isa::detect(), 1, &x);
        for isa in Isa::available() {
            for (threads, m) in [(1, 1), (2, 1), (3, 2), (2, 3), (1, 5), (2, 8), (3, 11), (2, 16), (2, 37)] {
                let some = multiply(&matrix, isa, threads, &x[..m * cols]);
                let same = some.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{format}, {m} rows on {threads} threads with {isa}");
            }
        }
    }
}

#[test]
fn parts_stand_one_below_another_and_residuals_are_added() {
    let cols = 256;
    let parts = [(Format::Q4_1, 24), (Format::Q4_1, 7), (Format::Q6K, 5), (Format::F32, 3)];
    let raw: Vec<Vec<u8>> = parts.iter().map(|&(format, rows)| bytes(format, rows, cols)).collect();
    let stack: Vec<(Format, &[u8])> = parts.iter().zip(&raw).map(|(part, raw)| (part.0, &raw[..])).collect();
    let matrix = Matrix::new(cols, &stack).unwrap();
    assert_eq!((matrix.rows(), matrix.cols()), (39, cols));
    let x = noise(9, 2 * cols);
    let whole = multiply(&matrix, Isa::detect(), 2, &x);
    let mut start = 0;
    for (part, &(_, rows)) in stack.iter().zip(&parts) {
        let alone = Matrix::new(cols, &[*part]).unwrap();
        let out = multiply(&alone, Isa::detect(), 2, &x);
        for t in 0..2 {
            assert_eq!(whole[t * 39 + start..][..rows], out[t * rows..][..rows]);
        }
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        matrix.row(start + rows - 1, &mut a);
        alone.row(rows - 1, &mut b);
        assert_eq!(a, b);
        start += rows;
    }
    let mut cpu = Cpu::new(NonZeroUsize::MIN, Isa::detect());
    let mut out = vec![2.0; 2 * 39];
    matrix.multiply(&mut cpu, Input::Plain(&x), Output::Add(&mut out));
    assert!(out.iter().zip(&whole).all(|(a, b)| *a == b + 2.0));
}

#[test]
fn bytes_of_another_shape_are_refused() {
    let columns = Matrix::new(33, &[(Format::Q4_1, &[0; 20])]);
    assert_eq!(columns.err(), Some(Error::Columns { cols: 33, format: Format::Q4_1 }));
    let short = Matrix::new(64, &[(Format::Q4_1, &[0; 39])]);
    assert_eq!(short.err(), Some(Error::Bytes { len: 39, cols: 64, format: Format::Q4_1 }));
}
