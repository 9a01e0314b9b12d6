//! What a matrix reads and where its product goes; norms and gates are taken on the way in, residuals on the way out.

use crate::lanes::{LANES, Lanes, padded};

/// The rows that a matrix multiplies.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `[m, cols]` as they are.
    Plain(&'a [f32]),
    /// `x / sqrt(mean(x²) + epsilon) * weight` of each row of `x` `[m, cols]`; `weight` has `cols` elements.
    Normed {
        /// The rows.
        x: &'a [f32],
        /// A factor a column.
        weight: &'a [f32],
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `silu(g) * u` of rows that hold `g`, then `u`: `[m, 2 * cols]`.
    Gated(&'a [f32]),
}

/// Where a product `[m, rows]` goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// Replaces what is there.
    Store(&'a mut [f32]),
    /// Is added to what is there.
    Add(&'a mut [f32]),
}

impl Input<'_> {
    /// How many rows of `cols` elements it gives.
    ///
    /// # Panics
    /// Where its slices do not fit `cols`.
    pub(crate) fn rows(&self, cols: usize) -> usize {
        let (len, width) = match *self {
            Self::Plain(x) => (x.len(), cols),
            Self::Normed { x, weight, .. } => {
                assert_eq!(weight.len(), cols, "norm weights do not fit the matrix");
                (x.len(), cols)
            }
            Self::Gated(x) => (x.len(), 2 * cols),
        };
        assert!(len.is_multiple_of(width), "an input of {len} elements has no rows of {width}");
        len / width
    }

    /// Writes row `index` to `out` `[cols]`.
    #[inline(always)]
    pub(crate) fn row<L: Lanes>(&self, index: usize, out: &mut [f32]) {
        let cols = out.len();
        match *self {
            Self::Plain(x) => out.copy_from_slice(&x[index * cols..][..cols]),
            Self::Normed { x, weight, epsilon } => norm::<L>(&x[index * cols..][..cols], weight, epsilon, out),
            Self::Gated(x) => {
                let (gate, up) = x[index * 2 * cols..][..2 * cols].split_at(cols);
                gated::<L>(gate, up, out);
            }
        }
    }
}

#[inline(always)]
fn norm<L: Lanes>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut squares = L::splat(0.0);
    for chunk in chunks {
        let v = L::load(chunk);
        squares = v.fma(v, squares);
    }
    let rest = L::load(&padded!(tail));
    squares = rest.fma(rest, squares);
    let scale = L::splat(1.0 / (squares.sum() / x.len() as f32 + epsilon).sqrt());
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((chunk, weight), out) in chunks.iter().zip(weights).zip(outs) {
        L::load(chunk).mul(scale).mul(L::load(weight)).store(out);
    }
    let mut last = [0.0; LANES];
    rest.mul(scale).mul(L::load(&padded!(weight_tail))).store(&mut last);
    out_tail.copy_from_slice(&last[..tail.len()]);
}

#[inline(always)]
fn gated<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let ((gates, gate_tail), (ups, up_tail)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        L::load(gate).silu().mul(L::load(up)).store(out);
    }
    let mut last = [0.0; LANES];
    L::load(&padded!(gate_tail)).silu().mul(L::load(&padded!(up_tail))).store(&mut last);
    out_tail.copy_from_slice(&last[..out_tail.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};

    struct Row<'a>(Input<'a>, usize, &'a mut [f32]);

    impl Kernel for Row<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self) {
            self.0.row::<L>(self.1, self.2);
        }
    }

    fn close(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() <= 1e-6 * (1.0 + b.abs())
    }

    #[test]
    fn norms_and_gates_match_f64() {
        for isa in Isa::available() {
            for cols in [16, 23, 64, 77] {
                let x: Vec<f32> = (0..4 * cols).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
                let weight: Vec<f32> = (0..cols).map(|i| 1.0 + i as f32 * 0.01).collect();
                let mut out = vec![0.0; cols];
                isa.run(Row(Input::Normed { x: &x, weight: &weight, epsilon: 1e-5 }, 1, &mut out));
                let row = &x[cols..2 * cols];
                let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
                for i in 0..cols {
                    assert!(close(out[i], f64::from(row[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i])));
                }
                isa.run(Row(Input::Gated(&x), 1, &mut out));
                for i in 0..cols {
                    let (g, u) = (f64::from(x[2 * cols + i]), f64::from(x[3 * cols + i]));
                    assert!(close(out[i], g / (1.0 + (-g).exp()) * u));
                }
            }
        }
    }
}
