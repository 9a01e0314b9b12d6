//! The lanes as one AVX-512 register, with or without the dot products of VNNI.
//!
//! SAFETY of every block here: `Isa::run` calls kernels over these lanes only where the machine has the features, and
//! loads and stores go through references to arrays of their size.

use std::arch::x86_64::*;

use super::{LANES, Lanes};
use crate::isa::{Kernel, run_avx512, run_avx512_vnni};

#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>(__m512);

impl<const VNNI: bool> Lanes for Avx512<VNNI> {
    type Ints = __m512i;
    type Bytes = __m512i;

    const TALL: usize = if VNNI { 8 } else { 4 };

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) {
        // SAFETY: whoever computes over these lanes runs on a machine that has their features.
        unsafe { if VNNI { run_avx512_vnni(kernel) } else { run_avx512(kernel) } }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    fn load_i8(from: &[i8; LANES]) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) })
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES]) {
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    fn scale2(self, exponent: Self) -> Self {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(exponent.0), _mm512_set1_epi32(127));
            Self(_mm512_mul_ps(self.0, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))))
        }
    }

    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES]) {
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }

    #[inline(always)]
    fn ints(value: i32) -> Self::Ints {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn dot(sum: Self::Ints, bytes: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        unsafe {
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(|i| i as u8)));
            if VNNI { _mm512_dpbusd_epi32(sum, bytes, x) } else { _mm512_add_epi32(sum, dot16(bytes, x)) }
        }
    }

    #[inline(always)]
    fn raise(ints: Self::Ints, plus: i32) -> Self::Ints {
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(ints), _mm512_set1_epi32(plus)) }
    }

    #[inline(always)]
    fn from_ints(ints: Self::Ints) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(ints) })
    }

    #[inline(always)]
    fn bytes(from: &[u8; 64]) -> Self::Bytes {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
        }
    }

    #[inline(always)]
    fn quarters(bytes: Self::Bytes) -> [Self::Bytes; 4] {
        unsafe {
            let mask = _mm512_set1_epi8(0x30);
            [
                _mm512_and_si512(_mm512_slli_epi16::<4>(bytes), mask),
                _mm512_and_si512(_mm512_slli_epi16::<2>(bytes), mask),
                _mm512_and_si512(bytes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), mask),
            ]
        }
    }

    #[inline(always)]
    fn eighths(bytes: Self::Bytes) -> [Self::Bytes; 8] {
        unsafe {
            let mask = _mm512_set1_epi8(0x10);
            [
                _mm512_and_si512(_mm512_slli_epi16::<4>(bytes), mask),
                _mm512_and_si512(_mm512_slli_epi16::<3>(bytes), mask),
                _mm512_and_si512(_mm512_slli_epi16::<2>(bytes), mask),
                _mm512_and_si512(_mm512_slli_epi16::<1>(bytes), mask),
                _mm512_and_si512(bytes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<1>(bytes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<3>(bytes), mask),
            ]
        }
    }

    #[inline(always)]
    fn double(bytes: Self::Bytes) -> Self::Bytes {
        unsafe { _mm512_add_epi8(bytes, bytes) }
    }

    #[inline(always)]
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        unsafe { _mm512_or_si512(a, b) }
    }
}

/// Dot products of four unsigned and four signed bytes, a lane each. VPMADDUBSW saturates at 16 bits, which bytes below
/// 128 cannot reach, so the top bits are taken apart.
#[inline(always)]
unsafe fn dot16(bytes: __m512i, x: __m512i) -> __m512i {
    unsafe {
        let ones = _mm512_set1_epi16(1);
        let low = _mm512_maddubs_epi16(_mm512_and_si512(bytes, _mm512_set1_epi8(127)), x);
        let top = _mm512_and_si512(_mm512_srli_epi16::<7>(bytes), _mm512_set1_epi8(1));
        let top = _mm512_slli_epi32::<7>(_mm512_madd_epi16(_mm512_maddubs_epi16(top, x), ones));
        _mm512_add_epi32(_mm512_madd_epi16(low, ones), top)
    }
}
