//! The lanes as two AVX2 registers.
//!
//! SAFETY of every block here: `Isa::run` calls kernels over these lanes only where the machine has the features, and
//! loads and stores go through references to arrays of twice their size.

use std::arch::x86_64::*;

use super::{LANES, Lanes};
use crate::isa::{Kernel, run_avx2};

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Lanes for Avx2 {
    type Ints = (__m256i, __m256i);
    type Bytes = (__m256i, __m256i);

    const TALL: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) {
        // SAFETY: whoever computes over these lanes runs on a machine that has their features.
        unsafe { run_avx2(kernel) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        unsafe { Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        unsafe {
            let halves: *const __m128i = from.as_ptr().cast();
            Self(_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1))))
        }
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        unsafe {
            let halves: *const __m128i = from.as_ptr().cast();
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves.add(1))));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES]) {
        unsafe {
            let halves: *mut __m128i = to.as_mut_ptr().cast();
            _mm_storeu_si128(halves, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(halves.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, term.0), _mm256_fmadd_ps(self.1, factor.1, term.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    fn scale2(self, exponent: Self) -> Self {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(exponent.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(exponent.1), bias));
            Self(_mm256_mul_ps(self.0, _mm256_castsi256_ps(low)), _mm256_mul_ps(self.1, _mm256_castsi256_ps(high)))
        }
    }

    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn ints(value: i32) -> Self::Ints {
        unsafe { (_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }

    #[inline(always)]
    fn dot(sum: Self::Ints, bytes: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        unsafe {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|i| i as u8)));
            (_mm256_add_epi32(sum.0, dot8(bytes.0, x)), _mm256_add_epi32(sum.1, dot8(bytes.1, x)))
        }
    }

    #[inline(always)]
    fn raise(ints: Self::Ints, plus: i32) -> Self::Ints {
        unsafe {
            let plus = _mm256_set1_epi32(plus);
            (
                _mm256_add_epi32(_mm256_slli_epi32::<8>(ints.0), plus),
                _mm256_add_epi32(_mm256_slli_epi32::<8>(ints.1), plus),
            )
        }
    }

    #[inline(always)]
    fn from_ints(ints: Self::Ints) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(ints.0), _mm256_cvtepi32_ps(ints.1)) }
    }

    #[inline(always)]
    fn bytes(from: &[u8; 64]) -> Self::Bytes {
        unsafe {
            let halves: *const __m256i = from.as_ptr().cast();
            (_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1)))
        }
    }

    #[inline(always)]
    fn nibbles(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes) {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let high = (_mm256_srli_epi16::<4>(bytes.0), _mm256_srli_epi16::<4>(bytes.1));
            let low = (_mm256_and_si256(bytes.0, mask), _mm256_and_si256(bytes.1, mask));
            (low, (_mm256_and_si256(high.0, mask), _mm256_and_si256(high.1, mask)))
        }
    }

    #[inline(always)]
    fn quarters(bytes: Self::Bytes) -> [Self::Bytes; 4] {
        let (low, high) = unsafe { (quarters(bytes.0), quarters(bytes.1)) };
        [(low[0], high[0]), (low[1], high[1]), (low[2], high[2]), (low[3], high[3])]
    }

    #[inline(always)]
    fn eighths(bytes: Self::Bytes) -> [Self::Bytes; 8] {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = unsafe { (eighths(bytes.0), eighths(bytes.1)) };
        [(a, i), (b, j), (c, k), (d, l), (e, m), (f, n), (g, o), (h, p)]
    }

    #[inline(always)]
    fn double(bytes: Self::Bytes) -> Self::Bytes {
        unsafe { (_mm256_add_epi8(bytes.0, bytes.0), _mm256_add_epi8(bytes.1, bytes.1)) }
    }

    #[inline(always)]
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        unsafe { (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }
}

#[inline(always)]
unsafe fn quarters(bytes: __m256i) -> [__m256i; 4] {
    unsafe {
        let mask = _mm256_set1_epi8(0x30);
        [
            _mm256_and_si256(_mm256_slli_epi16::<4>(bytes), mask),
            _mm256_and_si256(_mm256_slli_epi16::<2>(bytes), mask),
            _mm256_and_si256(bytes, mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), mask),
        ]
    }
}

#[inline(always)]
unsafe fn eighths(bytes: __m256i) -> [__m256i; 8] {
    unsafe {
        let mask = _mm256_set1_epi8(0x10);
        [
            _mm256_and_si256(_mm256_slli_epi16::<4>(bytes), mask),
            _mm256_and_si256(_mm256_slli_epi16::<3>(bytes), mask),
            _mm256_and_si256(_mm256_slli_epi16::<2>(bytes), mask),
            _mm256_and_si256(_mm256_slli_epi16::<1>(bytes), mask),
            _mm256_and_si256(bytes, mask),
            _mm256_and_si256(_mm256_srli_epi16::<1>(bytes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), mask),
            _mm256_and_si256(_mm256_srli_epi16::<3>(bytes), mask),
        ]
    }
}

/// Dot products of four unsigned and four signed bytes, a lane each. VPMADDUBSW saturates at 16 bits, which bytes below
/// 128 cannot reach, so the top bits are taken apart.
#[inline(always)]
unsafe fn dot8(bytes: __m256i, x: __m256i) -> __m256i {
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let low = _mm256_maddubs_epi16(_mm256_and_si256(bytes, _mm256_set1_epi8(127)), x);
        let top = _mm256_and_si256(_mm256_srli_epi16::<7>(bytes), _mm256_set1_epi8(1));
        let top = _mm256_maddubs_epi16(top, x);
        let top = _mm256_slli_epi32::<7>(_mm256_madd_epi16(top, ones));
        _mm256_add_epi32(_mm256_madd_epi16(low, ones), top)
    }
}
