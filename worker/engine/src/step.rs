//! The engine's thread: schedule → execute → sample → commit, for as long as there is work; asleep when there is none.
//! It waits for commands and deadlines, never for a reader.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use crate::batch::{Batch, TokenId};
use crate::clock;
use crate::config::Config;
use crate::door::{Door, Ticket};
use crate::events::{Event, Failure, FinishReason, Finished, Flow, Outbox};
use crate::grammar::Grammar;
use crate::handle::{Submission, Tenant};
use crate::prefix::Chain;
use crate::runner::{self, ModelRunner};
use crate::sampler::{Draw, Sampler, Scratch, Unsampleable};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Demand, Sequence, SequenceId};
use crate::stats::{Board, StepReport};

/// What handles and readers ask of the thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Arrival>),
    /// A paused sequence's reader has room again.
    Wake(SequenceId),
    /// A reader is gone.
    Abort(SequenceId),
    Shutdown,
}

/// A submission that was let in.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) id: SequenceId,
    pub(crate) submission: Submission,
    pub(crate) grammar: Option<Box<dyn Grammar>>,
    pub(crate) chain: Chain,
    pub(crate) submitted: Instant,
    pub(crate) ticket: Ticket,
    pub(crate) outbox: Outbox,
}

/// What a sequence is beside its place in the schedule: how its tokens are drawn, who reads them, what it has taken.
#[derive(Debug)]
struct Stream {
    tenant: Tenant,
    prompt_tokens: usize,
    /// Tokens of the prompt that the cache held.
    cached_tokens: usize,
    sampler: Sampler,
    outbox: Outbox,
    ticket: Ticket,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    compute_seconds: f64,
}

/// Why the thread ends.
enum End {
    Shutdown,
    Failed(String),
}

pub(crate) struct Stepper {
    runner: Box<dyn ModelRunner>,
    streams: BTreeMap<SequenceId, Stream>,
    scheduler: Scheduler,
    eos: Vec<TokenId>,
    inbox: Receiver<Command>,
    door: Arc<Door>,
    board: Arc<Board>,
    batch: Batch,
    /// One for each thread that draws, once there were as many.
    scratch: Mutex<Vec<Scratch>>,
}

/// What a chunk came to.
struct Outcome {
    id: SequenceId,
    rows: usize,
    drawn: Option<Result<Draw, Unsampleable>>,
}

/// A sequence's draw of this step, wherever it happens.
struct Turn<'a> {
    sampler: &'a mut Sampler,
    drawn: Option<thread::Result<Result<Draw, Unsampleable>>>,
}

impl Turn<'_> {
    /// A panic is kept for the engine's thread, which knows what to do: the runner's threads do not.
    fn draw(&mut self, logits: &mut [f32], shared: &Mutex<Vec<Scratch>>) {
        let spare = || shared.lock().ok();
        let mut scratch = spare().and_then(|mut spare| spare.pop()).unwrap_or_default();
        self.drawn = Some(catch_unwind(AssertUnwindSafe(|| self.sampler.sample(logits, &mut scratch))));
        if let Some(mut spare) = spare() {
            spare.push(scratch);
        }
    }
}

impl Stepper {
    pub(crate) fn new(
        config: &Config,
        runner: Box<dyn ModelRunner>,
        inbox: Receiver<Command>,
        door: Arc<Door>,
        board: Arc<Board>,
    ) -> Self {
        let kv_blocks = runner.shape().kv_blocks;
        Self {
            runner,
            streams: BTreeMap::new(),
            scheduler: Scheduler::new(config.max_batch_tokens, config.max_sequences, kv_blocks),
            eos: config.eos_token_ids.clone(),
            inbox,
            door,
            board,
            batch: Batch::new(),
            scratch: Mutex::default(),
        }
    }

    /// Runs until it is told to stop or the device fails; then ends whatever is in flight.
    pub(crate) fn run(mut self) {
        // A panic must not leave a stream without its end. Nothing is run after it, so a broken state does no harm.
        let end = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let failure = match end.unwrap_or_else(|_| End::Failed("the engine's thread panicked".into())) {
            End::Shutdown => {
                self.door.stop();
                Failure::Stopped
            }
            End::Failed(reason) => {
                tracing::error!(reason, "the engine has failed");
                self.door.fail(reason.clone());
                Failure::Device(reason)
            }
        };
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Submit(arrival) = command {
                arrival.outbox.end(Event::Failed(failure.clone()));
            }
        }
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            self.fail(id, failure.clone());
        }
        self.board.post_census(self.scheduler.census());
    }

    fn serve(&mut self) -> End {
        loop {
            if let Some(end) = self.take_commands() {
                return end;
            }
            for id in self.scheduler.expired(clock::now()) {
                self.fail(id, Failure::Deadline);
            }
            if self.scheduler.has_work()
                && let Err(reason) = self.step()
            {
                return End::Failed(reason);
            }
            self.board.post_census(self.scheduler.census());
        }
    }

    /// Does what was asked for since the last step; without work, sleeps until something is asked for or a deadline
    /// comes.
    fn take_commands(&mut self) -> Option<End> {
        loop {
            let command = if self.scheduler.has_work() {
                match self.inbox.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return None,
                    Err(TryRecvError::Disconnected) => return Some(End::Shutdown),
                }
            } else if let Some(deadline) = self.scheduler.next_deadline() {
                match self.inbox.recv_timeout(deadline.saturating_duration_since(clock::now())) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => return None,
                    Err(RecvTimeoutError::Disconnected) => return Some(End::Shutdown),
                }
            } else {
                match self.inbox.recv() {
                    Ok(command) => command,
                    Err(_) => return Some(End::Shutdown),
                }
            };
            match command {
                Command::Submit(arrival) => self.admit(*arrival),
                Command::Wake(id) => self.wake(id),
                Command::Abort(id) => self.abort(id),
                Command::Shutdown => return Some(End::Shutdown),
            }
            self.board.post_census(self.scheduler.census());
        }
    }

    fn admit(&mut self, arrival: Arrival) {
        let Arrival { id, submission, grammar, chain, submitted, mut ticket, outbox } = arrival;
        let Submission { tenant, priority: _, deadline, prompt, resume, sampling, scope: _, cache_salt: _ } =
            submission;
        let prompt_tokens = prompt.len();
        let limit = prompt_tokens + sampling.max_tokens as usize;
        let mut sampler = Sampler::new(sampling, &prompt, &resume, &self.eos);
        if let Some(grammar) = grammar {
            sampler.constrain(grammar, &self.eos);
        }
        let mut tokens = prompt;
        tokens.extend(resume);
        let complete = tokens.len() == limit;
        let demand = Demand { tenant: tenant.clone(), deadline, tokens, limit, chain };
        self.scheduler.admit(Sequence::new(id, demand));
        // For a moment the load counts it twice, rather than not at all.
        self.board.post_census(self.scheduler.census());
        ticket.seen();
        let stream = Stream {
            tenant,
            prompt_tokens,
            cached_tokens: 0,
            sampler,
            outbox,
            ticket,
            submitted,
            started: None,
            first_token: None,
            compute_seconds: 0.0,
        };
        self.streams.insert(id, stream);
        if complete {
            self.finish(id, FinishReason::Length, None);
        }
    }

    fn wake(&mut self, id: SequenceId) {
        match self.streams.get_mut(&id).map(|stream| stream.outbox.flush()) {
            Some(Flow::Open) => self.scheduler.wake(id),
            Some(Flow::Gone) => self.abort(id),
            // It is woken again, or has ended since.
            Some(Flow::Full) | None => {}
        }
    }

    /// One round: schedule → execute → sample → commit. The error is the device's.
    fn step(&mut self) -> Result<(), String> {
        let begin = clock::now();
        let plan = self.scheduler.schedule();
        self.fill_batch(&plan, begin);
        let scheduled = clock::now();
        let (outcomes, executed) = self.execute(&plan)?;
        let sampled = clock::now();
        let kept = |outcome: &&Outcome| match &outcome.drawn {
            Some(Ok(drawn)) => !self.streams[&outcome.id].sampler.ends(drawn.token),
            Some(Err(_)) | None => false,
        };
        let output_tokens = outcomes.iter().filter(kept).count();
        let seconds_a_row = (sampled - scheduled).as_secs_f64() / plan.rows() as f64;
        for outcome in outcomes {
            self.commit(outcome, seconds_a_row, sampled);
        }
        self.board.post_step(&StepReport {
            schedule: scheduled - begin,
            execute: executed - scheduled,
            sample: sampled - executed,
            commit: clock::now() - sampled,
            rows: plan.rows(),
            prefill_rows: plan.chunks.iter().filter(|chunk| chunk.prefill).map(|chunk| chunk.rows).sum(),
            output_tokens,
        });
        Ok(())
    }

    /// Runs the batch and draws, in the runner's threads. With the outcomes: when the logits were there.
    fn execute(&mut self, plan: &Plan) -> Result<(Vec<Outcome>, Instant), String> {
        let mut streams: BTreeMap<_, _> = self.streams.iter_mut().collect();
        let drawing = plan.chunks.iter().filter(|chunk| chunk.draws);
        let turns: Vec<_> = drawing
            .map(|chunk| {
                let stream = streams.remove(&chunk.id).expect("every sequence has its stream");
                Mutex::new(Turn { sampler: &mut stream.sampler, drawn: None })
            })
            .collect();
        let take = |row: usize, logits: &mut [f32]| {
            if let Some(Ok(mut turn)) = turns.get(row).map(Mutex::lock) {
                turn.draw(logits, &self.scratch);
            }
        };
        let executed = self.runner.execute_into(&self.batch, &take).map_err(|runner::Error::Device(reason)| reason)?;
        let mut turns = turns.into_iter();
        let mut outcomes = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            let drawn = if chunk.draws {
                let turn = turns.next().and_then(|turn| turn.into_inner().ok());
                let drawn = turn.and_then(|turn| turn.drawn).ok_or("the runner returned too few logits")?;
                Some(drawn.unwrap_or_else(|panic| resume_unwind(panic)))
            } else {
                None
            };
            outcomes.push(Outcome { id: chunk.id, rows: chunk.rows, drawn });
        }
        Ok((outcomes, executed))
    }

    fn fill_batch(&mut self, plan: &Plan, now: Instant) {
        self.batch.clear();
        for chunk in &plan.chunks {
            let sequence = self.scheduler.get(chunk.id).expect("a plan is about sequences that there are");
            let start = sequence.computed;
            let tokens = &sequence.tokens[start..start + chunk.rows];
            self.batch.push(tokens, start, sequence.blocks.as_slice(), usize::from(chunk.draws));
            let stream = self.streams.get_mut(&chunk.id).expect("every sequence has its stream");
            if stream.started.is_none() {
                stream.started = Some(now);
                stream.ticket.started();
                stream.cached_tokens = sequence.cached.unwrap_or(0).min(stream.prompt_tokens);
                stream.outbox.tell_cached(stream.cached_tokens);
                self.board.post_start(stream.prompt_tokens, stream.cached_tokens);
            }
        }
    }

    /// Writes down what a step made of a sequence, and sends it.
    fn commit(&mut self, outcome: Outcome, seconds_a_row: f64, now: Instant) {
        let Outcome { id, rows, drawn } = outcome;
        let stream = self.streams.get_mut(&id).expect("a sequence ends after its step, not in it");
        stream.compute_seconds += seconds_a_row * rows as f64;
        let drawn = match drawn {
            Some(Ok(drawn)) => drawn,
            Some(Err(error)) => return self.fail(id, error.into()),
            None => return self.scheduler.advance(id, rows),
        };
        self.scheduler.advance(id, rows);
        let token = drawn.token;
        stream.first_token.get_or_insert(now);
        if stream.sampler.ends(token) {
            return self.finish(id, FinishReason::Stop, Some(token));
        }
        if let Err(error) = stream.sampler.accept(token) {
            return self.fail(id, error.into());
        }
        let flow = stream.outbox.push(drawn);
        if stream.sampler.is_complete() {
            return self.finish(id, FinishReason::Length, None);
        }
        self.scheduler.push(id, token);
        match flow {
            Flow::Open => {}
            Flow::Full => self.scheduler.pause(id),
            Flow::Gone => self.abort(id),
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason, stop_token: Option<TokenId>) {
        let Some(stream) = self.end(id) else { return };
        let now = clock::now();
        let started = stream.started.unwrap_or(now);
        let first_token = stream.first_token.unwrap_or(started);
        stream.outbox.end(Event::Finished(Finished {
            reason,
            stop_token,
            prompt_tokens: stream.prompt_tokens,
            output_tokens: stream.sampler.outputs(),
            cached_tokens: stream.cached_tokens,
            queue: started - stream.submitted,
            prefill: first_token - started,
            decode: now.saturating_duration_since(first_token),
            compute_seconds: stream.compute_seconds,
        }));
    }

    fn fail(&mut self, id: SequenceId, failure: Failure) {
        if let Some(stream) = self.end(id) {
            stream.outbox.end(Event::Failed(failure));
        }
    }

    fn abort(&mut self, id: SequenceId) {
        self.end(id);
    }

    /// Takes a sequence out and its blocks back. What is in flight falls when the stream is dropped.
    fn end(&mut self, id: SequenceId) -> Option<Stream> {
        self.scheduler.remove(id);
        let stream = self.streams.remove(&id)?;
        self.board.post_end(&stream.tenant, stream.compute_seconds);
        // Posted first, so that who sees the end sees the blocks free.
        self.board.post_census(self.scheduler.census());
        Some(stream)
    }
}
