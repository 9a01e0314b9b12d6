//! Which replica takes a request: filter, score, pick. Pure; the random numbers are an argument.

use fastrand::Rng;

/// Picks one of `loads` by the power of two choices: of two drawn at random the one with less in flight, so that
/// routers that see the same loads do not all run to the same replica. None is a replica that may not be picked.
pub(crate) fn pick(loads: &[Option<usize>], rng: &mut Rng) -> Option<usize> {
    let open: Vec<(usize, usize)> = loads.iter().enumerate().filter_map(|(at, load)| load.map(|l| (l, at))).collect();
    match open.len() {
        0 => None,
        1 => Some(open[0].1),
        count => {
            let first = rng.usize(..count);
            // A different one: skip the first in the count of those that are left.
            let second = (first + rng.usize(1..count)) % count;
            let ((load_a, a), (load_b, b)) = (open[first], open[second]);
            Some(if load_b < load_a { b } else { a })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(loads: &[Option<usize>]) -> Vec<usize> {
        let mut rng = Rng::with_seed(7);
        let mut counts = vec![0; loads.len()];
        for _ in 0..3000 {
            counts[pick(loads, &mut rng).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn nobody_open_is_nobody_picked() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(pick(&[], &mut rng), None);
        assert_eq!(pick(&[None, None], &mut rng), None);
        assert_eq!(pick(&[None, Some(9)], &mut rng), Some(1));
    }

    #[test]
    fn equal_loads_share_and_the_busiest_gets_nothing() {
        for count in counts(&[Some(3), Some(3), Some(3)]) {
            assert!((800..1200).contains(&count), "{count}");
        }
        let counts = counts(&[Some(0), Some(1), Some(5), None]);
        assert!(counts[0] > counts[1] && counts[1] > 500, "{counts:?}");
        assert_eq!(counts[2..], [0, 0]);
    }

    #[test]
    fn loads_counted_at_dispatch_stay_level() {
        let mut rng = Rng::with_seed(3);
        let mut loads = vec![Some(0_usize); 8];
        for _ in 0..8000 {
            let at = pick(&loads, &mut rng).unwrap();
            loads[at] = loads[at].map(|load| load + 1);
        }
        assert!(loads.iter().flatten().all(|load| load.abs_diff(1000) <= 5), "{loads:?}");
    }
}
