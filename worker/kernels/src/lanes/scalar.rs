//! The lanes as arrays, for machines without a vector unit that we know.

use half::f16;

use super::{LANES, Lanes};
use crate::isa::{Kernel, run_scalar};

#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Scalar {
    type Ints = [i32; LANES];
    type Bytes = [u8; 64];

    const TALL: usize = 1;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) {
        run_scalar(kernel);
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        Self(from.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        Self(from.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        Self(from.map(f32::from))
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES]) {
        *to = self.0.map(|value| f16::from_f32(value).to_bits());
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], term.0[i])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn scale2(self, exponent: Self) -> Self {
        self.zip(exponent, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        *to = self.0.map(|value| value as i8);
    }

    #[inline(always)]
    fn ints(value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn dot(mut sum: Self::Ints, bytes: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        for (i, byte) in bytes.into_iter().enumerate() {
            sum[i / 4] += i32::from(byte) * i32::from(x[i % 4]);
        }
        sum
    }

    #[inline(always)]
    fn raise(ints: Self::Ints, plus: i32) -> Self::Ints {
        ints.map(|i| (i << 8) + plus)
    }

    #[inline(always)]
    fn from_ints(ints: Self::Ints) -> Self {
        Self(ints.map(|i| i as f32))
    }

    #[inline(always)]
    fn bytes(from: &[u8; 64]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn nibbles(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes) {
        (bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4))
    }

    #[inline(always)]
    fn quarters(bytes: Self::Bytes) -> [Self::Bytes; 4] {
        [0, 2, 4, 6].map(|shift| bytes.map(|byte| (byte >> shift & 3) << 4))
    }

    #[inline(always)]
    fn eighths(bytes: Self::Bytes) -> [Self::Bytes; 8] {
        [0, 1, 2, 3, 4, 5, 6, 7].map(|shift| bytes.map(|byte| (byte >> shift & 1) << 4))
    }

    #[inline(always)]
    fn double(bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|byte| byte << 1)
    }

    #[inline(always)]
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }
}
