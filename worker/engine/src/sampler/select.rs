//! A weighted draw from a row of logits, filtered by `top_k`, `min_p` and `top_p`, without sorting the vocabulary.
//!
//! Weights are whole numbers: e^((logit − peak) / temperature) in units of 2^-40. So sums are exact whatever their
//! order, and the filters below find the very cut that a sorted list would give. All three keep the first tokens in
//! the order of falling weight, ids rising among equals; the draw walks what is kept in the order of ids.

use crate::batch::TokenId;

/// Which tokens may be drawn; each filter has a value that switches it off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter {
    pub(super) top_k: u32,
    pub(super) min_p: f32,
    pub(super) top_p: f32,
}

/// Memory that draws share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// In the order of ids.
    candidates: Vec<Candidate>,
    /// The same, in whatever order the cut leaves them.
    ranked: Vec<Candidate>,
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

/// Turns logits into weights from 0 to 1.
pub(super) fn weigh(logits: &mut [f32], peak: f32, temperature: f32) {
    for logit in logits {
        *logit = exp((*logit - peak) / temperature);
    }
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

/// Draws a token by its weight among those that `filter` lets through. Overwrites the weights.
pub(super) fn draw(weights: &mut [f32], filter: Filter, random: u64, scratch: &mut Scratch) -> TokenId {
    if filter.min_p > 0.0 {
        weights.iter_mut().for_each(|weight| *weight = if *weight >= filter.min_p { *weight } else { 0.0 });
    }
    let k = if filter.top_k == 0 { usize::MAX } else { filter.top_k as usize };
    if k >= weights.len() && filter.top_p >= 1.0 {
        let all = weights.iter().zip(0..).map(|(weight, id)| (units(*weight), id));
        return pick(all, random);
    }
    let cut = cut(weights, k, filter.top_p, scratch);
    let kept = scratch.candidates.iter().filter(|candidate| candidate.rank() <= cut.rank());
    pick(kept.map(|candidate| (units(candidate.weight), candidate.id)), random)
}

/// Picks one of `kept` with a probability that is its share of their units.
fn pick(kept: impl Iterator<Item = (u64, TokenId)> + Clone, random: u64) -> TokenId {
    let total: u64 = kept.clone().map(|(units, _)| units).sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (units, id) in kept {
        match left.checked_sub(units) {
            Some(less) => left = less,
            None => return id,
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
