//! The scheduler's figures at one moment.

use crate::kv::BlockCounts;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) paused: usize,
    /// Tokens that must be read before every sequence decodes, less those that the cache holds.
    pub(crate) queued_tokens: usize,
    pub(crate) kv_blocks: BlockCounts,
    pub(crate) preemptions: u64,
    pub(crate) seats: usize,
    /// Steps that each running sequence may still take.
    pub(crate) remaining: Vec<usize>,
}

impl Census {
    /// Steps until a seat is free for a newcomer that has `ahead` others before it.
    pub(crate) fn steps_to_seat(&self, ahead: usize) -> usize {
        let Some(turn) = ahead.checked_sub(self.seats.saturating_sub(self.running)) else { return 0 };
        let mut remaining = self.remaining.clone();
        remaining.sort_unstable();
        // Those who take a seat are supposed to keep it for as long as the slowest of today.
        match remaining.last() {
            Some(slowest) => turn / remaining.len() * slowest + remaining[turn % remaining.len()],
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_a_seat_is_that_of_the_line_before() {
        let census = Census { seats: 2, running: 2, remaining: vec![30, 10], ..Census::default() };
        assert_eq!([0, 1, 2, 3].map(|ahead| census.steps_to_seat(ahead)), [10, 30, 40, 60]);
        let census = Census { seats: 2, running: 1, remaining: vec![30], ..Census::default() };
        assert_eq!([0, 1].map(|ahead| census.steps_to_seat(ahead)), [0, 30]);
    }
}
