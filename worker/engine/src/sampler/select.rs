//! A weighted draw from a row of logits, filtered by `top_k`, `min_p` and `top_p`, without sorting the vocabulary.
//!
//! Weights are whole numbers: e^((logit − peak) / temperature) in units of 2^-40. So sums are exact whatever their
//! order, and the filters below find the very cut that a sorted list would give. All three keep the first tokens in
//! the order of falling weight, ids rising among equals; the draw walks what is kept in the order of ids.

use penstock_kernels::{Isa, exponentials};

use crate::batch::TokenId;

/// Which tokens may be drawn; each filter has a value that switches it off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter {
    pub(super) top_k: u32,
    pub(super) min_p: f32,
    pub(super) top_p: f32,
}

/// What draws share: memory, and how fast the machine computes.
#[derive(Debug)]
pub(crate) struct Scratch {
    isa: Isa,
    /// The units of each [`SPAN`] of a row.
    spans: Vec<u64>,
    /// In the order of ids.
    candidates: Vec<Candidate>,
    /// The same, in whatever order the cut leaves them.
    ranked: Vec<Candidate>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { isa: Isa::detect(), spans: Vec::new(), candidates: Vec::new(), ranked: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    weight: f32,
    id: TokenId,
}

impl Candidate {
    /// The order that the filters cut: likely first, then low ids.
    fn rank(&self) -> (std::cmp::Reverse<u32>, TokenId) {
        // Bits of floats that are not negative are in the order of the floats.
        (std::cmp::Reverse(self.weight.to_bits()), self.id)
    }
}

const LANES: usize = 16;
/// Weights that a draw from a whole row steps over at a time.
const SPAN: usize = 256;

/// The highest logit. `None` where one is no number or infinite, or where none is above minus infinity.
pub(super) fn peak(logits: &[f32]) -> Option<f32> {
    let mut peaks = [f32::NEG_INFINITY; LANES];
    let mut sane = [true; LANES];
    let (lanes, rest) = logits.as_chunks::<LANES>();
    for lane in lanes {
        for ((peak, sane), logit) in peaks.iter_mut().zip(&mut sane).zip(lane) {
            *peak = if *logit > *peak { *logit } else { *peak };
            *sane &= *logit < f32::INFINITY;
        }
    }
    let sane = sane.iter().all(|sane| *sane) && rest.iter().all(|logit| *logit < f32::INFINITY);
    let peak = peaks.iter().chain(rest).fold(f32::NEG_INFINITY, |peak, logit| peak.max(*logit));
    (sane && peak > f32::NEG_INFINITY).then_some(peak)
}

/// The lowest id that has the highest logit.
pub(super) fn first(logits: &[f32], peak: f32) -> TokenId {
    logits.iter().position(|logit| *logit == peak).expect("the peak is one of the logits") as TokenId
}

/// The sum of e^(logit − peak).
pub(super) fn sum_of_exp(logits: &[f32], peak: f32) -> f64 {
    logits.iter().map(|logit| f64::from(exp(*logit - peak))).sum()
}

/// e^x for x ≤ 0, within 2 units in the last place; below e^-30 it stays there, which is less than a unit of weight.
/// Not libm's: this is the same on every machine, and the compiler makes vectors of it.
fn exp(x: f32) -> f32 {
    // Adding this leaves a whole number in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let x = if x > -30.0 { x } else { -30.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let f = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series: |f| ≤ ln 2 / 2, so that the first term left out is below 2^-27.
    let tail = 1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0 + f * (1.0 / 5040.0))));
    let power = 1.0 + f * (1.0 + f * (0.5 + f * tail));
    f32::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// A weight in units of 2^-40; exact but for what is below a unit.
fn units(weight: f32) -> u64 {
    const ONE: f32 = (1_u64 << 40) as f32;
    (weight * ONE) as i64 as u64
}

/// Turns logits into weights from 0 to 1.
pub(super) fn weigh(logits: &mut [f32], peak: f32, temperature: f32, scratch: &Scratch) {
    exponentials(scratch.isa, logits, peak, temperature);
}

/// Draws a token by its weight among those that `filter` lets through. Overwrites the weights.
pub(super) fn draw(weights: &mut [f32], filter: Filter, random: u64, scratch: &mut Scratch) -> TokenId {
    if filter.min_p > 0.0 {
        weights.iter_mut().for_each(|weight| *weight = if *weight >= filter.min_p { *weight } else { 0.0 });
    }
    let k = if filter.top_k == 0 { usize::MAX } else { filter.top_k as usize };
    if k >= weights.len() && filter.top_p >= 1.0 {
        return pick_any(weights, random, &mut scratch.spans);
    }
    let cut = cut(weights, k, filter.top_p, scratch);
    let kept = scratch.candidates.iter().filter(|candidate| candidate.rank() <= cut.rank());
    pick(kept.map(|candidate| (units(candidate.weight), candidate.id)), random)
}

/// Picks one of `kept` with a probability that is its share of their units.
fn pick(kept: impl Iterator<Item = (u64, TokenId)> + Clone, random: u64) -> TokenId {
    let total: u64 = kept.clone().map(|(units, _)| units).sum();
    walk(kept, share(random, total))
}

/// `random` of 2^64 parts of `total`, rounded down.
fn share(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// The one with which the sum of units exceeds `left`.
fn walk(kept: impl Iterator<Item = (u64, TokenId)>, mut left: u64) -> TokenId {
    for (units, id) in kept {
        match left.checked_sub(units) {
            Some(less) => left = less,
            None => return id,
        }
    }
    unreachable!("what is picked is below the sum, and the sum is positive: the peak's weight is 1")
}

/// As [`pick`] of all, without looking at each weight twice.
fn pick_any(weights: &[f32], random: u64, spans: &mut Vec<u64>) -> TokenId {
    spans.clear();
    spans.extend(weights.chunks(SPAN).map(|span| span.iter().map(|weight| units(*weight)).sum::<u64>()));
    let total: u64 = spans.iter().sum();
    let mut left = share(random, total);
    for ((span, units_of_span), number) in weights.chunks(SPAN).zip(spans.iter()).zip(0..) {
        match left.checked_sub(*units_of_span) {
            Some(less) => left = less,
            None => {
                let ids = number * SPAN as TokenId..;
                return walk(span.iter().zip(ids).map(|(weight, id)| (units(*weight), id)), left);
            }
        }
    }
    unreachable!("what is picked is below the sum, and the sum is positive: the peak's weight is 1")
}

/// The last token in rank that is kept. Leaves all that are kept, and others, among the candidates.
fn cut(weights: &[f32], k: usize, top_p: f32, scratch: &mut Scratch) -> Candidate {
    let total = if k >= weights.len() { Some(weights.iter().map(|weight| units(*weight)).sum()) } else { None };
    // Nearly always a few likely tokens are enough; else all are looked at.
    for floor in [1.0 / 1024.0, 0.0] {
        collect(weights, floor, &mut scratch.candidates);
        scratch.ranked.clone_from(&scratch.candidates);
        let ranked = &mut scratch.ranked[..];
        let (ranked, total) = match total {
            Some(total) => (ranked, total),
            None if ranked.len() < k && floor > 0.0 => continue,
            None => {
                let ranked = likeliest(ranked, k);
                let total = sum(ranked);
                (ranked, total)
            }
        };
        let target = ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total);
        if sum(ranked) >= target {
            return nucleus(ranked, target);
        }
    }
    unreachable!("all tokens together have the total")
}

fn collect(weights: &[f32], floor: f32, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    let all = weights.iter().zip(0..).map(|(weight, id)| Candidate { weight: *weight, id });
    candidates.extend(all.filter(|candidate| candidate.weight >= floor && units(candidate.weight) > 0));
}

fn sum(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| units(candidate.weight)).sum()
}

/// The first `k` in rank, in any order.
fn likeliest(candidates: &mut [Candidate], k: usize) -> &mut [Candidate] {
    if k < candidates.len() {
        candidates.select_nth_unstable_by_key(k - 1, Candidate::rank);
        return &mut candidates[..k];
    }
    candidates
}

/// The candidate in rank with which the sum comes to `target`. Halves what is in question until that is little.
fn nucleus(mut candidates: &mut [Candidate], mut target: u64) -> Candidate {
    while candidates.len() > 32 {
        let middle = candidates.len() / 2;
        candidates.select_nth_unstable_by_key(middle, Candidate::rank);
        let (upper, lower) = candidates.split_at_mut(middle);
        let above = sum(upper);
        if above >= target {
            candidates = upper;
        } else {
            target -= above;
            candidates = lower;
        }
    }
    candidates.sort_unstable_by_key(Candidate::rank);
    for candidate in candidates.iter() {
        match target.checked_sub(units(candidate.weight)) {
            None | Some(0) => return *candidate,
            Some(less) => target = less,
        }
    }
    unreachable!("the target is at most the sum")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: sort all, cut the list, draw from what is left.
    fn sorted_list(weights: &[f32], filter: Filter) -> Vec<(u64, TokenId)> {
        let mut list: Vec<_> = weights.iter().zip(0..).map(|(weight, id)| (*weight, id)).collect();
        list.sort_by(|a: &(f32, TokenId), b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if filter.top_k > 0 {
            list.truncate(filter.top_k as usize);
        }
        list.retain(|(weight, _)| *weight >= filter.min_p);
        let total: u64 = list.iter().map(|(weight, _)| units(*weight)).sum();
        if filter.top_p < 1.0 {
            let target = (f64::from(filter.top_p) * total as f64).ceil() as u64;
            let mut sum = 0;
            list.retain(|(weight, _)| {
                let kept = sum < target;
                sum += units(*weight);
                kept
            });
        }
        let mut list: Vec<_> = list.into_iter().map(|(weight, id)| (units(weight), id)).collect();
        list.sort_unstable_by_key(|(_, id)| *id);
        list
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let top_k = prop_oneof![Just(0u32), 1u32..400];
        let min_p = prop_oneof![Just(0f32), 0.0001f32..1.0];
        let top_p = prop_oneof![Just(1f32), 0.01f32..1.0];
        (top_k, min_p, top_p).prop_map(|(top_k, min_p, top_p)| Filter { top_k, min_p, top_p })
    }

    /// Flat and steep rows, with ties among them.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let row = |spread: i32| prop::collection::vec((-spread..spread).prop_map(|step| step as f32 / 8.0), 1..600);
        prop_oneof![row(2), row(30), row(300)]
    }

    fn weights(logits: &[f32], temperature: f32) -> Vec<f32> {
        let mut weights = logits.to_vec();
        weigh(&mut weights, peak(logits).unwrap(), temperature, &Scratch::default());
        weights
    }

    proptest! {
        #[test]
        fn a_draw_is_that_of_a_sorted_list(
            logits in logits(), temperature in 0.1f32..3.0, filter in filter(), random in any::<u64>()
        ) {
            let mut weights = weights(&logits, temperature);
            let expected = pick(sorted_list(&weights, filter).into_iter(), random);
            prop_assert_eq!(draw(&mut weights, filter, random, &mut Scratch::default()), expected);
        }

        #[test]
        fn spans_pick_what_a_walk_over_all_picks(logits in logits(), random in any::<u64>()) {
            // Longer than a span, with its end in one.
            let weights = weights(&logits.repeat(3), 1.0);
            let all = weights.iter().zip(0..).map(|(weight, id)| (units(*weight), id));
            prop_assert_eq!(pick_any(&weights, random, &mut Vec::new()), pick(all, random));
        }

        /// Against arithmetic in f64: only rounding is between them.
        #[test]
        fn shares_are_those_of_the_softmax(logits in logits(), temperature in 0.1f32..3.0) {
            let kept = sorted_list(&weights(&logits, temperature), Filter { top_k: 0, min_p: 0.0, top_p: 1.0 });
            let peak = f64::from(peak(&logits).unwrap());
            let exact: Vec<_> =
                logits.iter().map(|logit| ((f64::from(*logit) - peak) / f64::from(temperature)).exp()).collect();
            let (sum, total) = (exact.iter().sum::<f64>(), kept.iter().map(|(units, _)| units).sum::<u64>() as f64);
            let distance: f64 =
                kept.iter().zip(&exact).map(|((units, _), exact)| (*units as f64 / total - exact / sum).abs()).sum();
            prop_assert!(distance < 1e-6, "{}", distance);
        }
    }

    #[test]
    fn exp_is_exact_to_rounding() {
        for step in 0..300_000 {
            let x = step as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0_f64.powi(-22), "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        let ruled_out = weights(&[f32::NEG_INFINITY, 0.0], 0.5);
        assert_eq!([units(ruled_out[0]), units(ruled_out[1])], [0, 1 << 40]);
    }

    #[test]
    fn the_extremes_of_the_random_number_pick_the_ends() {
        let row = [3, 0, 5].into_iter().zip(0..);
        assert_eq!(pick(row.clone(), 0), 0);
        assert_eq!(pick(row, u64::MAX), 2);
    }
}
