//! The door to the engine: who may come in, and who is still inside. Every submission holds a [`Ticket`].

use std::sync::Arc;

use tokio::sync::watch;

use crate::handle::SubmitError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Open,
    Draining,
    Stopped,
    Failed(String),
}

/// Submissions that the engine's thread has not taken over yet; its own figures lack them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unseen {
    pub(crate) submissions: usize,
    pub(crate) tokens: usize,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// Submissions before their first step.
    waiting: usize,
    in_flight: usize,
    unseen: Unseen,
}

/// How many submissions the door lets in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) waiting: usize,
    pub(crate) in_flight: usize,
}

#[derive(Debug)]
pub(crate) struct Door {
    room: Room,
    state: watch::Sender<State>,
}

impl Door {
    pub(crate) fn new(room: Room) -> Arc<Self> {
        let state = State { stage: Stage::Open, waiting: 0, in_flight: 0, unseen: Unseen::default() };
        Arc::new(Self { room, state: watch::Sender::new(state) })
    }

    /// Lets a submission of `tokens` tokens in, or says why not.
    pub(crate) fn enter(self: &Arc<Self>, tokens: usize) -> Result<Ticket, SubmitError> {
        let mut outcome = Ok(());
        self.state.send_if_modified(|state| {
            outcome = match &state.stage {
                Stage::Open if state.waiting >= self.room.waiting || state.in_flight >= self.room.in_flight => {
                    Err(SubmitError::QueueFull { waiting: state.waiting, in_flight: state.in_flight })
                }
                Stage::Open => Ok(()),
                Stage::Draining => Err(SubmitError::Draining),
                Stage::Stopped => Err(SubmitError::Stopped),
                Stage::Failed(reason) => Err(SubmitError::Failed(reason.clone())),
            };
            if outcome.is_ok() {
                state.waiting += 1;
                state.in_flight += 1;
                state.unseen.submissions += 1;
                state.unseen.tokens += tokens;
            }
            false
        });
        outcome.map(|()| Ticket { door: self.clone(), waiting: true, unseen: Some(tokens) })
    }

    pub(crate) fn drain(&self) {
        self.advance(Stage::Draining, |stage| *stage == Stage::Open);
    }

    pub(crate) fn undrain(&self) {
        self.advance(Stage::Open, |stage| *stage == Stage::Draining);
    }

    pub(crate) fn stop(&self) {
        self.advance(Stage::Stopped, |stage| matches!(stage, Stage::Open | Stage::Draining));
    }

    pub(crate) fn fail(&self, reason: String) {
        self.advance(Stage::Failed(reason), |stage| !matches!(stage, Stage::Failed(_)));
    }

    fn advance(&self, to: Stage, from: impl FnOnce(&Stage) -> bool) {
        self.state.send_if_modified(|state| {
            let go = from(&state.stage);
            if go {
                state.stage = to;
            }
            go
        });
    }

    pub(crate) fn stage(&self) -> Stage {
        self.state.borrow().stage.clone()
    }

    pub(crate) fn unseen(&self) -> Unseen {
        self.state.borrow().unseen
    }

    /// Answers when nobody is inside.
    pub(crate) async fn empty(&self) {
        let mut state = self.state.subscribe();
        // The sender is `self`'s, so it cannot be gone.
        let _ = state.wait_for(|state| state.in_flight == 0).await;
    }
}

/// A submission's place in the engine, from the door to its end.
#[derive(Debug)]
pub(crate) struct Ticket {
    door: Arc<Door>,
    waiting: bool,
    unseen: Option<usize>,
}

impl Ticket {
    /// The engine's thread has taken it over.
    pub(crate) fn seen(&mut self) {
        if let Some(tokens) = self.unseen.take() {
            self.door.state.send_if_modified(|state| {
                state.unseen.submissions -= 1;
                state.unseen.tokens -= tokens;
                false
            });
        }
    }

    /// Its first step has come.
    pub(crate) fn started(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.door.state.send_if_modified(|state| {
                state.waiting -= 1;
                false
            });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seen();
        self.started();
        self.door.state.send_if_modified(|state| {
            state.in_flight -= 1;
            state.in_flight == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_until_one_has_started() {
        let door = Door::new(Room { waiting: 1, in_flight: 2 });
        let mut first = door.enter(3).unwrap();
        assert_eq!(door.enter(1).unwrap_err(), SubmitError::QueueFull { waiting: 1, in_flight: 1 });
        assert_eq!(door.unseen(), Unseen { submissions: 1, tokens: 3 });
        first.seen();
        first.started();
        assert_eq!(door.unseen(), Unseen::default());
        let second = door.enter(1).unwrap();
        drop(first);
        drop(second);
        door.drain();
        assert_eq!(door.enter(1).unwrap_err(), SubmitError::Draining);
        door.undrain();
        door.fail("lost".into());
        door.stop();
        assert_eq!(door.enter(1).unwrap_err(), SubmitError::Failed("lost".into()));
    }
}
