//! Which replica takes a request: filter, score, pick. Pure; the random numbers are an argument.

use std::fmt;
use std::str::FromStr;

use fastrand::Rng;

/// How a replica is chosen among those that are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Balance {
    /// Of two drawn at random the one with less in flight, so that routers that see the same loads do not all run to
    /// the same replica.
    #[default]
    PowerOfTwo,
    /// The one with the least in flight; among equals, one at random.
    LeastLoad,
    /// One after the other.
    RoundRobin,
    /// Any one.
    Random,
}

/// A word that names no way of choosing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way of choosing a worker; there are p2c, least-load, round-robin, random")]
pub struct UnknownBalance(String);

impl Balance {
    const ALL: [Self; 4] = [Self::PowerOfTwo, Self::LeastLoad, Self::RoundRobin, Self::Random];
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOfTwo => "p2c",
            Self::LeastLoad => "least-load",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
        })
    }
}

impl FromStr for Balance {
    type Err = UnknownBalance;

    fn from_str(word: &str) -> Result<Self, UnknownBalance> {
        let known = Self::ALL.into_iter().find(|balance| balance.to_string() == word);
        known.ok_or_else(|| UnknownBalance(word.to_owned()))
    }
}

/// Picks one of `loads`; None in it is a replica that may not be picked. `turn` counts the picks.
pub(crate) fn pick(balance: Balance, loads: &[Option<usize>], turn: usize, rng: &mut Rng) -> Option<usize> {
    let open: Vec<(usize, usize)> = loads.iter().enumerate().filter_map(|(at, load)| load.map(|l| (l, at))).collect();
    let count = open.len();
    if count <= 1 {
        return open.first().map(|(_, at)| *at);
    }
    let chosen = match balance {
        Balance::PowerOfTwo => {
            let first = rng.usize(..count);
            // A different one: skip the first in the count of those that are left.
            let second = (first + rng.usize(1..count)) % count;
            if open[second].0 < open[first].0 { second } else { first }
        }
        Balance::LeastLoad => {
            let least = open.iter().map(|(load, _)| *load).min();
            let equals: Vec<usize> = (0..count).filter(|at| Some(open[*at].0) == least).collect();
            equals[rng.usize(..equals.len())]
        }
        Balance::RoundRobin => turn % count,
        Balance::Random => rng.usize(..count),
    };
    Some(open[chosen].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(balance: Balance, loads: &[Option<usize>]) -> Vec<usize> {
        let mut rng = Rng::with_seed(7);
        let mut counts = vec![0; loads.len()];
        for turn in 0..3000 {
            counts[pick(balance, loads, turn, &mut rng).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn nobody_open_is_nobody_picked() {
        let mut rng = Rng::with_seed(1);
        for balance in Balance::ALL {
            assert_eq!(pick(balance, &[], 0, &mut rng), None);
            assert_eq!(pick(balance, &[None, None], 0, &mut rng), None);
            assert_eq!(pick(balance, &[None, Some(9)], 0, &mut rng), Some(1));
        }
    }

    #[test]
    fn equal_loads_share_and_the_busiest_gets_nothing() {
        for count in counts(Balance::PowerOfTwo, &[Some(3), Some(3), Some(3)]) {
            assert!((800..1200).contains(&count), "{count}");
        }
        let counts = counts(Balance::PowerOfTwo, &[Some(0), Some(1), Some(5), None]);
        assert!(counts[0] > counts[1] && counts[1] > 500, "{counts:?}");
        assert_eq!(counts[2..], [0, 0]);
    }

    #[test]
    fn the_other_ways_do_what_their_names_say() {
        let loads = [Some(2), None, Some(0), Some(0)];
        assert_eq!(counts(Balance::RoundRobin, &loads), [1000, 0, 1000, 1000]);
        let least = counts(Balance::LeastLoad, &loads);
        assert!(least[..2] == [0, 0] && least[2].abs_diff(least[3]) < 300, "{least:?}");
        let random = counts(Balance::Random, &loads);
        assert!(random[1] == 0 && [0, 2, 3].iter().all(|at| random[*at].abs_diff(1000) < 150), "{random:?}");
    }

    #[test]
    fn ways_are_known_by_their_words() {
        for balance in Balance::ALL {
            assert_eq!(balance.to_string().parse(), Ok(balance));
        }
        assert!("fastest".parse::<Balance>().unwrap_err().to_string().contains("least-load"));
    }

    #[test]
    fn loads_counted_at_dispatch_stay_level() {
        let mut rng = Rng::with_seed(3);
        let mut loads = vec![Some(0_usize); 8];
        for _ in 0..8000 {
            let at = pick(Balance::PowerOfTwo, &loads, 0, &mut rng).unwrap();
            loads[at] = loads[at].map(|load| load + 1);
        }
        assert!(loads.iter().flatten().all(|load| load.abs_diff(1000) <= 5), "{loads:?}");
    }
}
