//! A worker whose every word comes from the test.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use penstock_cluster::membership::Member;
use penstock_proto::ErrorCode;
use penstock_proto::worker::{
    DrainRequest, DrainResponse, FileChunk, FileInfo, FinishReason, Finished, GetLoadRequest, GetModelRequest,
    GetModelResponse, Load, ModelCard, RankedToken, TokenLogprob, Tokens, WatchLoadRequest, Worker,
    WorkerGenerateEvent, WorkerGenerateRequest, get_model_response, worker_generate_event,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::model::files;
use super::{CONTEXT, MODEL, VOCABULARY, ids, soon};

/// What every worker says of its load.
pub(crate) const LOAD: Load = Load {
    running: 2,
    waiting: 1,
    queued_uncached_tokens: 70,
    prefill_rate: 1000.0,
    kv_blocks_used: 5,
    kv_blocks_cached: 3,
    kv_blocks_free: 8,
    predicted_wait_seconds: 0.25,
    numerics: String::new(),
    draining: false,
};

/// What the stand-in says that it has of every prompt.
const CACHED_TOKENS: u32 = 1;

fn message(sequence_number: u64, event: Option<worker_generate_event::Event>) -> WorkerGenerateEvent {
    WorkerGenerateEvent { sequence_number, event, cached_tokens: CACHED_TOKENS }
}

/// A call that a worker has received.
pub(crate) struct Call {
    pub(crate) request: WorkerGenerateRequest,
    events: mpsc::Sender<Result<WorkerGenerateEvent, Status>>,
    said: u64,
}

impl Call {
    /// The prompt as text.
    pub(crate) fn prompt(&self) -> String {
        let bytes = self.request.prompt_ids.iter().filter(|id| **id >= 3).map(|id| (id - 3) as u8).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Sends an event as it stands.
    pub(crate) async fn send(&self, sequence_number: u64, event: Option<worker_generate_event::Event>) {
        self.events.send(Ok(message(sequence_number, event))).await.unwrap();
    }

    /// Sends tokens where they are due.
    pub(crate) async fn tokens(&mut self, ids: Vec<u32>) {
        let position = self.said;
        self.said += ids.len() as u64;
        self.send(position, Some(worker_generate_event::Event::Tokens(Tokens { ids, logprobs: Vec::new() }))).await;
    }

    /// Says a text whose tokens are all so likely, with as many others beside each as were asked for.
    pub(crate) async fn say_surely(&mut self, text: &str, logprob: f32) {
        let (position, ids) = (self.said, ids(text));
        self.said += ids.len() as u64;
        let top =
            || (0..self.top_logprobs()).map(|id| RankedToken { id: id + 100, logprob: -1.0 - id as f32 }).collect();
        let logprobs = ids.iter().map(|_| TokenLogprob { logprob, top: top() }).collect();
        self.send(position, Some(worker_generate_event::Event::Tokens(Tokens { ids, logprobs }))).await;
    }

    /// How many of the most likely tokens are asked for.
    pub(crate) fn top_logprobs(&self) -> u32 {
        self.request.sampling.as_ref().unwrap().top_logprobs.expect("log-probabilities are asked for")
    }

    /// Says a text.
    pub(crate) async fn say(&mut self, text: &str) {
        self.tokens(ids(text)).await;
    }

    /// What an honest end says.
    pub(crate) fn honest_end(&self) -> Finished {
        Finished {
            reason: FinishReason::Stop.into(),
            prompt_tokens: self.request.prompt_ids.len() as u32,
            output_tokens: self.said as u32,
            cached_tokens: CACHED_TOKENS,
            ..Finished::default()
        }
    }

    /// Ends the answer.
    pub(crate) async fn finish(self) {
        self.send(self.said, Some(worker_generate_event::Event::Finished(self.honest_end()))).await;
    }

    /// Sends a token. Returns whether somebody still takes it.
    pub(crate) async fn try_token(&mut self, id: u32) -> bool {
        let event = worker_generate_event::Event::Tokens(Tokens { ids: vec![id], logprobs: Vec::new() });
        let position = self.said;
        self.said += 1;
        self.events.send(Ok(message(position, Some(event)))).await.is_ok()
    }

    /// Ends the answer, where somebody still takes it.
    pub(crate) async fn try_finish(self) {
        let event = worker_generate_event::Event::Finished(self.honest_end());
        drop(self.events.send(Ok(message(self.said, Some(event)))).await);
    }

    /// Fails.
    pub(crate) async fn fail(self, status: Status) {
        self.events.send(Err(status)).await.unwrap();
    }

    /// Says text until nobody takes it.
    pub(crate) async fn babble(mut self) {
        loop {
            let ids = ids(&"x".repeat(4000));
            let event = worker_generate_event::Event::Tokens(Tokens { ids, logprobs: Vec::new() });
            if self.events.send(Ok(message(self.said, Some(event)))).await.is_err() {
                return;
            }
            self.said += 4000;
        }
    }

    /// Waits until the router has dropped the stream.
    pub(crate) async fn dropped(&self) {
        self.events.closed().await;
    }
}

/// What a router asks of a worker's drain, and the way to answer it.
pub(crate) type DrainCall = (DrainRequest, oneshot::Sender<()>);

pub(super) struct Fake {
    pub(super) calls: mpsc::UnboundedSender<Call>,
    pub(super) drains: mpsc::UnboundedSender<DrainCall>,
    pub(super) refusal: Arc<Mutex<Option<Status>>>,
    pub(super) digest: String,
    pub(super) context: u32,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Worker for Fake {
    type GetModelStream = Answers<GetModelResponse>;
    type GenerateStream = Answers<WorkerGenerateEvent>;
    type WatchLoadStream = Answers<Load>;

    async fn get_model(
        &self,
        _: tonic::Request<GetModelRequest>,
    ) -> Result<tonic::Response<Self::GetModelStream>, Status> {
        let files = files();
        let info = |(name, data): (&String, &Vec<u8>)| FileInfo {
            name: name.clone(),
            size: data.len() as u64,
            digest: Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let card = ModelCard {
            name: MODEL.to_owned(),
            digest: self.digest.clone(),
            context_length: self.context,
            vocab_size: VOCABULARY,
            kv_tokens: 2000,
            files: files.iter().map(info).collect(),
            ..ModelCard::default()
        };
        let mut parts = vec![get_model_response::Part::Card(card)];
        for (name, data) in files {
            let (head, tail) = data.split_at(data.len() / 2);
            for data in [head.to_vec(), tail.to_vec()] {
                parts.push(get_model_response::Part::File(FileChunk { name: name.clone(), data }));
            }
        }
        let parts = parts.into_iter().map(|part| Ok(GetModelResponse { part: Some(part) }));
        Ok(tonic::Response::new(stream::iter(parts).boxed()))
    }

    async fn generate(
        &self,
        request: tonic::Request<WorkerGenerateRequest>,
    ) -> Result<tonic::Response<Self::GenerateStream>, Status> {
        if let Some(status) = self.refusal.lock().unwrap().clone() {
            return Err(status);
        }
        let (events, stream) = mpsc::channel(4);
        let _ = self.calls.send(Call { request: request.into_inner(), events, said: 0 });
        Ok(tonic::Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn get_load(&self, _: tonic::Request<GetLoadRequest>) -> Result<tonic::Response<Load>, Status> {
        Ok(tonic::Response::new(LOAD))
    }

    async fn watch_load(
        &self,
        _: tonic::Request<WatchLoadRequest>,
    ) -> Result<tonic::Response<Self::WatchLoadStream>, Status> {
        Err(Status::unimplemented("not asked by routers yet"))
    }

    async fn drain(&self, request: tonic::Request<DrainRequest>) -> Result<tonic::Response<DrainResponse>, Status> {
        let (done, answered) = oneshot::channel();
        let _ = self.drains.send((request.into_inner(), done));
        answered.await.map_err(|_| ErrorCode::Cancelled.status("the drain was called off", None))?;
        Ok(tonic::Response::new(DrainResponse {}))
    }
}

/// A worker as the test sees it.
pub(crate) struct FakeWorker {
    pub(crate) member: Member,
    pub(super) calls: mpsc::UnboundedReceiver<Call>,
    pub(super) drains: mpsc::UnboundedReceiver<DrainCall>,
    pub(super) refusal: Arc<Mutex<Option<Status>>>,
}

impl FakeWorker {
    /// The next call that comes.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// The next drain that is asked for.
    pub(crate) async fn drain(&mut self) -> DrainCall {
        soon(self.drains.recv()).await.unwrap()
    }

    /// Whether a call has come that nobody took.
    pub(crate) fn was_called(&mut self) -> bool {
        self.calls.try_recv().is_ok()
    }

    /// Refuses every call from now on.
    pub(crate) fn refuse(&self, status: Status) {
        *self.refusal.lock().unwrap() = Some(status);
    }
}

/// What a worker is like.
#[derive(Clone)]
pub(crate) struct Traits {
    pub(crate) digest: &'static str,
    pub(crate) context: u32,
}

impl Default for Traits {
    fn default() -> Self {
        Self { digest: "d1", context: CONTEXT }
    }
}
