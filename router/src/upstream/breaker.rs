//! When an upstream is given a rest: pure, the time is an argument. It knows outcomes, not what was called.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open a breaker.
const IN_A_ROW: u32 = 5;
/// Outcomes that the share of failures is taken of.
const WINDOW: usize = 20;
/// Outcomes below which a share says nothing.
const LEAST_OUTCOMES: usize = 10;
/// The first rest; each failed probe doubles it.
const REST: Duration = Duration::from_secs(5);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Whether an upstream is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// It rests.
    Open,
    /// One call may try whether it is well again, or does.
    HalfOpen,
}

/// How a call went, as far as it says something of the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The upstream does its work.
    Success,
    /// It does not.
    Failure,
    /// The call ended for reasons of its own.
    Neutral,
}

/// The right to one call. Those from before a change of state say nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
pub(super) struct Breaker {
    /// Counts the changes of state.
    generation: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed { in_a_row: u32, failed: VecDeque<bool> },
    Open { until: Instant, rest: Duration },
    Probing { rest: Duration },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { generation: 0, state: State::closed() }
    }

    /// Lets a call through, or says how long until one may be.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, Duration> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until, rest } if until <= now => self.enter(State::Probing { rest }),
            State::Open { until, .. } => return Err(until - now),
            State::Probing { .. } => return Err(Duration::from_secs(1)),
        }
        Ok(Ticket(self.generation))
    }

    /// Takes in how a call went.
    pub(super) fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        if ticket.0 != self.generation {
            return;
        }
        match (&mut self.state, outcome) {
            (State::Closed { in_a_row, failed }, Outcome::Success | Outcome::Failure) => {
                let failure = outcome == Outcome::Failure;
                *in_a_row = if failure { *in_a_row + 1 } else { 0 };
                failed.push_back(failure);
                if failed.len() > WINDOW {
                    failed.pop_front();
                }
                let failures = failed.iter().filter(|failed| **failed).count();
                let often = failed.len() >= LEAST_OUTCOMES && failures * 2 >= failed.len();
                if failure && (*in_a_row >= IN_A_ROW || often) {
                    self.enter(State::Open { until: now + REST, rest: REST });
                }
            }
            (State::Probing { .. }, Outcome::Success) => self.enter(State::closed()),
            (State::Probing { rest }, Outcome::Failure) => {
                let rest = (*rest * 2).min(LONGEST_REST);
                self.enter(State::Open { until: now + rest, rest });
            }
            // The next call may try at once.
            (State::Probing { rest }, Outcome::Neutral) => {
                let rest = *rest;
                self.enter(State::Open { until: now, rest });
            }
            (State::Closed { .. }, Outcome::Neutral) | (State::Open { .. }, _) => {}
        }
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until, .. } if until > now => BreakerState::Open,
            State::Open { .. } | State::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    fn enter(&mut self, state: State) {
        self.generation += 1;
        self.state = state;
    }
}

impl State {
    fn closed() -> Self {
        Self::Closed { in_a_row: 0, failed: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fail(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let ticket = breaker.admit(now).unwrap();
            breaker.settle(ticket, Outcome::Failure, now);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let old = breaker.admit(now).unwrap();
        fail(&mut breaker, IN_A_ROW, now);
        assert_eq!((breaker.state(now), breaker.admit(now)), (BreakerState::Open, Err(REST)));
        let later = now + REST;
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        let probe = breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err(), "one probe at a time");
        breaker.settle(old, Outcome::Success, later);
        assert_eq!(breaker.state(later), BreakerState::HalfOpen, "a call from before says nothing");
        breaker.settle(probe, Outcome::Success, later);
        assert_eq!(breaker.state(later), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn each_failed_probe_doubles_the_rest_up_to_the_longest() {
        let (mut breaker, mut now) = (Breaker::new(), Instant::now());
        fail(&mut breaker, IN_A_ROW, now);
        let mut rests = Vec::new();
        for _ in 0..6 {
            let rest = breaker.admit(now).unwrap_err();
            rests.push(rest.as_secs());
            now += rest;
            fail(&mut breaker, 1, now);
        }
        assert_eq!(rests, [5, 10, 20, 40, 60, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_probe_makes_room_for_the_next() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        fail(&mut breaker, IN_A_ROW, now);
        let later = now + REST;
        let probe = breaker.admit(later).unwrap();
        breaker.settle(probe, Outcome::Neutral, later);
        assert!(breaker.admit(later).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_all_calls_failing_opens_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for turn in 0..LEAST_OUTCOMES {
            assert_eq!(breaker.state(now), BreakerState::Closed, "after {turn}");
            let ticket = breaker.admit(now).unwrap();
            breaker.settle(ticket, if turn % 2 == 0 { Outcome::Success } else { Outcome::Failure }, now);
        }
        assert_eq!(breaker.state(now), BreakerState::Open);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Call,
        Settle(usize, Outcome),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let outcome = prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Neutral)];
        prop_oneof![
            3 => Just(Event::Call),
            4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Event::Settle(which, outcome)),
            1 => (0..90_u64).prop_map(Event::Wait),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_keeps_its_promises(events in prop::collection::vec(event(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _entered = runtime.enter();
            let (mut breaker, mut now) = (Breaker::new(), Instant::now());
            let mut calls: Vec<Ticket> = Vec::new();
            for event in events {
                let before = breaker.state(now);
                match event {
                    Event::Call => match (before, breaker.admit(now)) {
                        (BreakerState::Closed, admitted) => calls.push(admitted.expect("a closed one admits")),
                        (BreakerState::Open, admitted) => {
                            let wait = admitted.expect_err("an open one does not");
                            prop_assert!(wait <= LONGEST_REST);
                            prop_assert_eq!(breaker.state(now + wait), BreakerState::HalfOpen);
                        }
                        (BreakerState::HalfOpen, Ok(probe)) => {
                            prop_assert!(breaker.admit(now).is_err(), "one probe at a time");
                            calls.push(probe);
                        }
                        (BreakerState::HalfOpen, Err(_)) => {
                            prop_assert!(calls.iter().any(|call| call.0 == breaker.generation), "somebody probes");
                        }
                    },
                    Event::Settle(which, outcome) if !calls.is_empty() => {
                        let call = calls.swap_remove(which % calls.len());
                        breaker.settle(call, outcome, now);
                        if outcome != Outcome::Failure && before == BreakerState::Closed {
                            prop_assert_eq!(breaker.state(now), BreakerState::Closed);
                        }
                    }
                    Event::Settle(..) => {}
                    Event::Wait(seconds) => now += Duration::from_secs(seconds),
                }
            }
            // Whatever was, it comes back once calls succeed.
            for call in calls {
                breaker.settle(call, Outcome::Neutral, now);
            }
            now += LONGEST_REST;
            let probe = breaker.admit(now).expect("its rest is over");
            breaker.settle(probe, Outcome::Success, now);
            prop_assert_eq!(breaker.state(now), BreakerState::Closed);
        }
    }
}
