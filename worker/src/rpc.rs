//! The `Worker` service: proto on one side, the engine on the other, converted here and nowhere else.

mod card;
mod decode;
mod generation;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use penstock_engine::Engine;
use penstock_engine::batch::BLOCK_TOKENS;
use penstock_proto::ErrorCode;
use penstock_proto::worker as wire;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::constraint::Compiler;
use crate::model::Served;
use generation::Generation;

/// How often a load that keeps changing is sent.
const LOAD_INTERVAL: Duration = Duration::from_millis(200);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over one engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) served: Arc<Served>,
    pub(crate) constraints: Compiler,
    pub(crate) engine: Engine,
    pub(crate) drain: Drain,
    /// Streams that have no end of their own end with it.
    pub(crate) stop: CancellationToken,
}

/// Whether the worker is leaving: the one switch that everybody watches.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    engine: Engine,
    switch: watch::Sender<bool>,
}

impl Drain {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, switch: watch::Sender::new(false) }
    }

    /// No new sequences from now on; open streams are told.
    pub(crate) fn begin(&self) {
        self.engine.drain();
        self.switch.send_replace(true);
    }

    /// New sequences again.
    pub(crate) fn end(&self) {
        self.engine.undrain();
        self.switch.send_replace(false);
    }

    pub(crate) fn is_on(&self) -> bool {
        *self.switch.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.switch.subscribe()
    }

    /// Answers when it has been ended, or was never begun.
    async fn ended(&self) {
        // The sender is `self`'s, so it cannot be gone.
        let _ = self.watch().wait_for(|draining| !draining).await;
    }
}

impl Service {
    fn load(&self) -> wire::Load {
        let load = self.engine.load();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        wire::Load {
            running: count(load.running),
            waiting: count(load.waiting),
            queued_uncached_tokens: load.queued_tokens as u64,
            prefill_rate: load.prefill_rate,
            kv_blocks_used: count(load.kv_blocks.used),
            kv_blocks_cached: count(load.kv_blocks.cached),
            kv_blocks_free: count(load.kv_blocks.free),
            predicted_wait_seconds: load.predicted_wait,
            numerics: self.served.card.numerics.clone(),
            draining: load.draining,
        }
    }
}

#[tonic::async_trait]
impl wire::Worker for Service {
    type GetModelStream = Responses<wire::GetModelResponse>;
    type GenerateStream = Responses<wire::WorkerGenerateEvent>;
    type WatchLoadStream = Responses<wire::Load>;

    async fn get_model(
        &self,
        request: Request<wire::GetModelRequest>,
    ) -> Result<Response<Self::GetModelStream>, Status> {
        let (wanted, name) = (request.into_inner().model, &self.served.card.name);
        if !wanted.is_empty() && wanted != *name {
            let message = format!("this worker serves {name:?}, not {wanted:?}");
            return Err(ErrorCode::ModelNotFound.status(message, Some("model")));
        }
        let kv_tokens = (self.engine.shape().kv_blocks * BLOCK_TOKENS) as u64;
        let parts = card::parts(self.served.clone(), kv_tokens);
        Ok(Response::new(Box::pin(futures_util::stream::iter(parts.map(Ok)))))
    }

    async fn generate(
        &self,
        request: Request<wire::WorkerGenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (submission, constraint) = decode::submission(request.into_inner(), &self.served.card)?;
        let position = submission.resume.len() as u64;
        // Watched from before the submission, so that no drain falls in between.
        let draining = self.drain.watch();
        let events = match constraint {
            Some(constraint) => {
                let grammar = self.constraints.compile(constraint, submission.resume.clone()).await;
                let grammar = grammar.map_err(decode::constraint_refusal)?;
                self.engine.submit_constrained(submission, grammar)
            }
            None => self.engine.submit(submission),
        };
        let events = events.map_err(decode::refusal)?;
        Ok(Response::new(Box::pin(Generation::new(events, draining, position).into_stream())))
    }

    async fn get_load(&self, _request: Request<wire::GetLoadRequest>) -> Result<Response<wire::Load>, Status> {
        Ok(Response::new(self.load()))
    }

    async fn watch_load(
        &self,
        _request: Request<wire::WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let mut ticks = tokio::time::interval(LOAD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = (self.clone(), ticks, None);
        let loads = futures_util::stream::unfold(state, |(service, mut ticks, last)| async move {
            loop {
                ticks.tick().await;
                let load = service.load();
                if last.as_ref() != Some(&load) {
                    return Some((Ok(load.clone()), (service, ticks, Some(load))));
                }
            }
        });
        Ok(Response::new(Box::pin(loads.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Result<Response<wire::DrainResponse>, Status> {
        if request.into_inner().undrain {
            self.drain.end();
            return Ok(Response::new(wire::DrainResponse {}));
        }
        self.drain.begin();
        tokio::select! {
            () = self.engine.idle() => Ok(Response::new(wire::DrainResponse {})),
            () = self.drain.ended() => Err(ErrorCode::Cancelled.status("the drain was called off", None)),
        }
    }
}

#[cfg(test)]
mod tests;
