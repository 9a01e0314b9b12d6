//! The softmax's numerators.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes, padded};

/// Replaces each `x` by e^((x − peak) / temperature), which is at most 1 where no `x` is above `peak`; e^-30 where it would
/// be less. The same bits with every instruction set.
///
/// # Panics
/// Where this machine lacks `isa`.
pub fn exponentials(isa: Isa, values: &mut [f32], peak: f32, temperature: f32) {
    assert!(Isa::available().contains(&isa), "this machine lacks {isa}");
    isa.run(Exponentials { values, peak, temperature });
}

struct Exponentials<'a> {
    values: &'a mut [f32],
    peak: f32,
    temperature: f32,
}

impl Kernel for Exponentials<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (minus, temperature, least) = (L::splat(-self.peak), L::splat(self.temperature), L::splat(-30.0));
        let (chunks, tail) = self.values.as_chunks_mut::<LANES>();
        for chunk in chunks {
            L::load(chunk).add(minus).div(temperature).max(least).exp().store(chunk);
        }
        let mut last = padded!(tail);
        L::load(&last).add(minus).div(temperature).max(least).exp().store(&mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_f64_and_the_same_with_every_instruction_set() {
        let logits: Vec<f32> = (0..5003).map(|i| (i as f32 * 0.731).sin() * 25.0).chain([f32::NEG_INFINITY]).collect();
        let of = |isa| {
            let mut values = logits.clone();
            exponentials(isa, &mut values, 25.0, 0.7);
            values
        };
        let scalar = of(Isa::Scalar);
        for (logit, value) in logits.iter().zip(&scalar) {
            let exact = ((f64::from(*logit) - 25.0) / f64::from(0.7_f32)).max(-30.0).exp();
            // What rounding the exponent does to the result grows with the exponent.
            assert!((f64::from(*value) / exact - 1.0).abs() < 3e-6, "{logit}: {value}, not {exact}");
        }
        for isa in Isa::available() {
            assert!(of(isa).iter().zip(&scalar).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
}
