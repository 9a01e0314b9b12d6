//! The handle on an engine: submissions go in, streams of events come out. The engine itself runs on its own thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::clock;
use crate::config::{self, Config};
use crate::door::{Door, Room, Stage};
use crate::events::{self, Events};
use crate::grammar::Grammar;
use crate::runner::{ModelRunner, Shape};
use crate::sampler::{self, SamplingParams};
use crate::sequence::{Priority, SequenceId};
use crate::stats::{Board, Load, Stats};
use crate::step::{Arrival, Command, Stepper};

/// For whom work is done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub Arc<str>);

/// One sequence to run.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Whom its seconds are counted for.
    pub tenant: Tenant,
    /// Its class in the order of service.
    pub priority: Priority,
    /// When it is given up, on the clock of [`std::time::Instant`].
    pub deadline: Instant,
    /// The prompt's token ids; at least one.
    pub prompt: Vec<TokenId>,
    /// Outputs that the client has already: they count as outputs and are not emitted again.
    pub resume: Vec<TokenId>,
    /// How its tokens are drawn.
    pub sampling: SamplingParams,
}

/// Why a submission was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// An id that the model does not have.
    #[error("{field} has token {id}, but the vocabulary has {vocab_size} tokens")]
    UnknownToken {
        /// The field of the submission or of its sampling parameters.
        field: &'static str,
        /// The id.
        id: TokenId,
        /// Ids are below this.
        vocab_size: usize,
    },
    /// No token would fit behind the prompt.
    #[error("the prompt has {prompt} tokens, and with one more it does not fit into a context of {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// `max_tokens` is 0.
    #[error("max_tokens is 0")]
    NoTokens,
    /// Prompt and answer would not fit together.
    #[error("the prompt's {prompt} tokens and max_tokens of {max_tokens} do not fit into a context of {context}")]
    MaxTokensTooMany {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the answer at most.
        max_tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// More to resume from than the answer may have.
    #[error("{resume} tokens to resume from are more than max_tokens of {max_tokens}")]
    ResumeTooLong {
        /// Tokens to resume from.
        resume: usize,
        /// Tokens of the answer at most.
        max_tokens: usize,
    },
    /// A sampling parameter out of its range.
    #[error(transparent)]
    Parameter(#[from] sampler::ParameterError),
    /// The sequence could never be in the pool as a whole.
    #[error("the sequence may take {needed} KV blocks, the pool has {pool}")]
    PoolTooSmall {
        /// Blocks of the sequence at its longest.
        needed: usize,
        /// Blocks of the pool.
        pool: usize,
    },
    /// As many wait, or are inside altogether, as may.
    #[error("the queue is full: {waiting} wait, {in_flight} are in flight")]
    QueueFull {
        /// Submissions before their first step.
        waiting: usize,
        /// Submissions that have not ended.
        in_flight: usize,
    },
    /// The engine takes nothing new; what is in flight goes on.
    #[error("the engine is draining")]
    Draining,
    /// The engine was stopped.
    #[error("the engine was stopped")]
    Stopped,
    /// The engine's device failed.
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The system gives no thread.
    #[error("no thread for the engine: {0}")]
    Thread(#[from] std::io::Error),
}

/// A handle on a running engine, cheap to clone. When the last one is dropped, what is in flight ends with
/// [`Failure::Stopped`](events::Failure::Stopped) and the thread is joined, which takes a step at most.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    shape: Shape,
    door: Arc<Door>,
    board: Arc<Board>,
    /// Not bounded by itself: the door bounds the sequences, and each is submitted, woken from a pause and aborted once.
    commands: mpsc::Sender<Command>,
    arrivals: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts an engine over `runner` on a thread of its own.
    pub fn start(config: Config, runner: Box<dyn ModelRunner>) -> Result<Self, StartError> {
        config.check()?;
        let shape = runner.shape().clone();
        let room = Room { waiting: config.max_waiting, in_flight: config.max_waiting + config.max_sequences };
        let door = Door::new(room);
        let board = Arc::new(Board::new(shape.kv_blocks));
        let (commands, inbox) = mpsc::channel();
        let stepper = Stepper::new(&config, runner, inbox, door.clone(), board.clone());
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || stepper.run())?;
        let (arrivals, thread) = (AtomicU64::new(0), Mutex::new(Some(thread)));
        Ok(Self(Arc::new(Inner { config, shape, door, board, commands, arrivals, thread })))
    }

    /// Queues a sequence. Never waits.
    pub fn submit(&self, submission: Submission) -> Result<Events, SubmitError> {
        self.queue(submission, None)
    }

    /// Queues a sequence whose outputs are held to `grammar`, which has taken those of `resume` already. Never waits.
    pub fn submit_constrained(&self, submission: Submission, grammar: Box<dyn Grammar>) -> Result<Events, SubmitError> {
        self.queue(submission, Some(grammar))
    }

    fn queue(&self, submission: Submission, grammar: Option<Box<dyn Grammar>>) -> Result<Events, SubmitError> {
        let inner = &*self.0;
        submission.check(&inner.config, &inner.shape)?;
        let ticket = inner.door.enter(submission.prompt.len() + submission.resume.len())?;
        let arrival = inner.arrivals.fetch_add(1, Ordering::Relaxed);
        let id = SequenceId { priority: submission.priority, arrival };
        let position = submission.resume.len() as u64;
        let (commands, door) = (inner.commands.clone(), inner.door.clone());
        let (outbox, events) = events::channel(id, inner.config.event_buffer, position, commands, door);
        let arrival = Box::new(Arrival { id, submission, grammar, submitted: clock::now(), ticket, outbox });
        match inner.commands.send(Command::Submit(arrival)) {
            Ok(()) => Ok(events),
            // The thread has ended since the door was passed.
            Err(_) => Err(self.failed().map_or(SubmitError::Stopped, SubmitError::Failed)),
        }
    }

    /// Refuses new submissions from now on; what is in flight goes on.
    pub fn drain(&self) {
        self.0.door.drain();
    }

    /// Takes new submissions again after [`drain`](Self::drain).
    pub fn undrain(&self) {
        self.0.door.undrain();
    }

    /// Answers when nothing is in flight: every sequence has ended, and its last event is with its reader.
    pub async fn idle(&self) {
        self.0.door.empty().await;
    }

    /// Why the engine can do nothing any more, if so: its device failed.
    pub fn failed(&self) -> Option<String> {
        match self.0.door.stage() {
            Stage::Failed(reason) => Some(reason),
            Stage::Open | Stage::Draining | Stage::Stopped => None,
        }
    }

    /// The load now; takes no part in the engine's queue.
    pub fn load(&self) -> Load {
        let inner = &*self.0;
        let draining = inner.door.stage() != Stage::Open;
        inner.board.load(inner.door.unseen(), draining)
    }

    /// What the engine has done since its start, as of its last step.
    pub fn stats(&self) -> Stats {
        self.0.board.stats()
    }

    /// The sizes of the model and of the pool.
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The engine's limits.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Ends everything in flight with [`Failure::Stopped`](events::Failure::Stopped) and waits for the thread's end.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }
}

impl Inner {
    fn shutdown(&self) {
        self.door.stop();
        // A thread that has ended already needs no command.
        let _ = self.commands.send(Command::Shutdown);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the engine's thread had panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Submission {
    fn check(&self, config: &Config, shape: &Shape) -> Result<(), SubmitError> {
        let (prompt, context) = (self.prompt.len(), shape.context_length);
        let max_tokens = self.sampling.max_tokens as usize;
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt >= context {
            return Err(SubmitError::PromptTooLong { prompt, context });
        }
        if max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if prompt + max_tokens > context {
            return Err(SubmitError::MaxTokensTooMany { prompt, max_tokens, context });
        }
        if self.resume.len() > max_tokens {
            return Err(SubmitError::ResumeTooLong { resume: self.resume.len(), max_tokens });
        }
        self.sampling.check(&config.eos_token_ids, shape.vocab_size)?;
        self.check_tokens(shape.vocab_size)?;
        // The last token is drawn and never read, so it needs no place.
        let needed = (prompt + max_tokens - 1).div_ceil(BLOCK_TOKENS);
        if needed > shape.kv_blocks {
            return Err(SubmitError::PoolTooSmall { needed, pool: shape.kv_blocks });
        }
        Ok(())
    }

    fn check_tokens(&self, vocab_size: usize) -> Result<(), SubmitError> {
        let biased: Vec<_> = self.sampling.logit_bias.iter().map(|(id, _)| *id).collect();
        let fields = [
            ("prompt", &self.prompt),
            ("resume", &self.resume),
            ("stop_token_ids", &self.sampling.stop_token_ids),
            ("logit_bias", &biased),
        ];
        for (field, ids) in fields {
            if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab_size) {
                return Err(SubmitError::UnknownToken { field, id, vocab_size });
            }
        }
        Ok(())
    }
}
