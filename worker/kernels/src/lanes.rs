//! Sixteen f32 lanes and sixteen i32 lanes, once an instruction set. Every operation is correctly rounded or exact and
//! every reduction has one order, so that all sets give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;

use crate::isa::Kernel;

/// Lanes of a [`Lanes`].
pub(crate) const LANES: usize = 16;

/// Sixteen f32 values.
pub(crate) trait Lanes: Copy {
    /// Sixteen i32 values.
    type Ints: Copy;
    /// Sixty-four bytes: four for each of the lanes.
    type Bytes: Copy;

    /// Input rows that a product takes together at most: 1, 4 or 8, as many sums as registers hold.
    const TALL: usize;

    /// Runs `kernel` in a function of its own: what is inlined into one function takes long to compile.
    fn call<K: Kernel>(kernel: K);

    fn splat(value: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    /// From f16 bits.
    fn load_f16(from: &[u16; LANES]) -> Self;
    /// From bf16 bits.
    fn load_bf16(from: &[u16; LANES]) -> Self;
    fn load_i8(from: &[i8; LANES]) -> Self;
    /// To f16 bits, to nearest, ties to even.
    fn store_f16(self, to: &mut [u16; LANES]);
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    fn fma(self, factor: Self, term: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^exponent` for integral exponents of -126 to 127.
    fn scale2(self, exponent: Self) -> Self;
    /// As i8, for integral values of -128 to 127.
    fn store_i8(self, to: &mut [i8; LANES]);

    fn ints(value: i32) -> Self::Ints;
    /// Adds to each lane the dot product of its four unsigned bytes and the four signed bytes of `x`. Exact.
    fn dot(sum: Self::Ints, bytes: Self::Bytes, x: [i8; 4]) -> Self::Ints;
    /// `256 * ints + plus`.
    fn raise(ints: Self::Ints, plus: i32) -> Self::Ints;
    fn from_ints(ints: Self::Ints) -> Self;
    fn bytes(from: &[u8; 64]) -> Self::Bytes;
    /// The lower and the upper halves of the bytes, as bytes.
    fn nibbles(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes);
    /// Each byte's four pairs of bits, lowest first, as bits 4 and 5 of bytes.
    fn quarters(bytes: Self::Bytes) -> [Self::Bytes; 4];
    /// Each byte's eight bits, lowest first, as bit 4 of bytes.
    fn eighths(bytes: Self::Bytes) -> [Self::Bytes; 8];
    /// Each byte twice itself, for bytes below 128.
    fn double(bytes: Self::Bytes) -> Self::Bytes;
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// The lanes' sum: halves folded onto each other.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }

    /// e to the power of each lane, to about one unit in the last place; inputs beyond ±87 count as ±87.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.max(Self::splat(-87.0)).min(Self::splat(87.0));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first exact in few bits, so that the reduced argument keeps its precision (Cody and Waite).
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.fma(r, Self::splat(coefficient));
        }
        p.scale2(n)
    }

    /// `self / (1 + e^-self)`.
    #[inline(always)]
    fn silu(self) -> Self {
        self.div(Self::splat(1.0).add(self.mul(Self::splat(-1.0)).exp()))
    }
}

/// Calls `each` with sixteen values at a time; the rest are filled up with zeros and what lies beyond the end is cut.
macro_rules! padded {
    ($from:expr) => {{
        let mut full = [Default::default(); $crate::lanes::LANES];
        full[..$from.len()].copy_from_slice($from);
        full
    }};
}
pub(crate) use padded;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    struct Everything<'a>(&'a [f32; LANES], &'a [u8; 64], &'a mut Vec<u32>);

    impl Kernel for Everything<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let Self(x, bytes, out) = self;
            let v = L::load(x);
            let mut buffer = [0.0; LANES];
            let third = L::splat(0.333);
            let results = [
                v.exp(),
                v.silu(),
                v.round(),
                v.abs(),
                v.div(third),
                v.fma(third, third),
                v.max(third),
                v.min(third),
                v.add(third).mul(v),
            ];
            for result in results {
                result.store(&mut buffer);
                out.extend(buffer.iter().map(|f| f.to_bits()));
            }
            out.extend([v.sum().to_bits(), v.greatest().to_bits()]);
            let mut halves = [0; LANES];
            v.store_f16(&mut halves);
            out.extend(halves.iter().map(|&h| u32::from(h)));
            L::load_f16(&halves).store(&mut buffer);
            out.extend(buffer.iter().map(|f| f.to_bits()));
            L::load_bf16(&halves).store(&mut buffer);
            out.extend(buffer.iter().map(|f| f.to_bits()));
            let mut small = [0; LANES];
            v.round().store_i8(&mut small);
            out.extend(small.iter().map(|&i| i as u32));
            L::load_i8(&small).store(&mut buffer);
            out.extend(buffer.iter().map(|f| f.to_bits()));
            let (low, high) = L::nibbles(L::bytes(bytes));
            let [a, b, c, d] = L::quarters(L::bytes(bytes));
            let [e, f, g, h, i, j, k, l] = L::eighths(L::bytes(bytes));
            let bits = [e, f, g, h, i, j, k, l, L::double(d)];
            for part in [L::bytes(bytes), low, high, a, b, c, d, L::or(low, d)].into_iter().chain(bits) {
                let ints = L::raise(L::dot(L::ints(-7), part, [127, -128, 127, -3]), 99);
                L::from_ints(ints).store(&mut buffer);
                out.extend(buffer.iter().map(|f| f.to_bits()));
            }
        }
    }

    fn run(isa: Isa) -> Vec<u32> {
        let x = std::array::from_fn(|i| (i as f32 - 7.3) * 11.7);
        let bytes = std::array::from_fn(|i| if i % 7 == 0 { 255 } else { (i * 37 % 256) as u8 });
        let mut out = Vec::new();
        isa.run(Everything(&x, &bytes, &mut out));
        out
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let scalar = run(Isa::Scalar);
        assert!(scalar.len() > 200);
        for isa in Isa::available() {
            assert_eq!(run(isa), scalar, "{isa}");
        }
    }

    #[test]
    fn exponentials_are_accurate() {
        struct Exp<'a>(&'a [f32; LANES], &'a mut [f32; LANES]);
        impl Kernel for Exp<'_> {
            #[inline(always)]
            fn run<L: Lanes>(self) {
                L::load(self.0).exp().store(self.1);
            }
        }
        for step in 0..1000 {
            let x: [f32; LANES] = std::array::from_fn(|i| -86.9 + (step * LANES + i) as f32 * 0.0108);
            let mut y = [0.0; LANES];
            Isa::detect().run(Exp(&x, &mut y));
            for (x, y) in x.iter().zip(y) {
                let exact = f64::from(*x).exp();
                assert!((f64::from(y) / exact - 1.0).abs() < 3e-7, "exp({x}) = {y}, not {exact}");
            }
        }
    }
}
