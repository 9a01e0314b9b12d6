//! Whom a load asks, an endpoint of OpenAI's API or a worker without a router before it, and the times of one answer.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use penstock_proto::worker::{
    self as wire, GetModelRequest, SamplingParams, WorkerClient, WorkerGenerateRequest, get_model_response,
    worker_generate_event,
};
use penstock_proto::{RequestId, time};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::fault::Fault;
use crate::sse::Events;

/// How long a request may take: for a worker, which wants to know.
const DEADLINE: Duration = Duration::from_secs(600);

/// Whom the load asks.
#[derive(Clone)]
pub(super) enum Target {
    /// Any endpoint of OpenAI's API.
    OpenAi(OpenAi),
    /// One worker.
    Worker(Box<Worker>),
}

#[derive(Clone)]
pub(super) struct OpenAi {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    model: String,
    /// Asks for nothing that OpenAI does not know.
    plain: bool,
}

#[derive(Clone)]
pub(super) struct Worker {
    url: String,
    client: WorkerClient<Channel>,
    card: wire::ModelCard,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to its end.
    Ok,
    /// Turned away: it may be asked again.
    Rejected,
    /// Anything else.
    Failed,
}

/// What one request's client saw.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) outcome: Outcome,
    pub(super) problem: Option<String>,
    pub(super) ttft: Option<Duration>,
    pub(super) gaps: Vec<Duration>,
    pub(super) total: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) tokens: u64,
}

type Ending = Result<(), (Outcome, String)>;

impl Target {
    pub(super) fn openai(url: &str, key: Option<String>, model: String, plain: bool) -> Result<Self, Fault> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().map_err(Fault::failed)?;
        let url = format!("{}/v1/completions", url.trim_end_matches('/'));
        Ok(Self::OpenAi(OpenAi { http, url, key, model, plain }))
    }

    /// Connects and asks what the worker serves.
    pub(super) async fn worker(url: &str) -> Result<Self, Fault> {
        let unreachable = |error: &dyn fmt::Display| Fault::not_reachable(format!("{url}: {error}"));
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| Fault::bad_input(format!("--worker: {e}")))?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| unreachable(&error))?;
        let mut client = WorkerClient::new(channel);
        let parts = client.get_model(GetModelRequest { model: String::new() }).await;
        let first = parts.map_err(|status| unreachable(&status))?.into_inner().message().await;
        match first.map_err(|status| unreachable(&status))?.and_then(|response| response.part) {
            Some(get_model_response::Part::Card(card)) if card.vocab_size > 0 => {
                Ok(Self::Worker(Box::new(Worker { url: url.to_owned(), client, card })))
            }
            Some(get_model_response::Part::Card(_) | get_model_response::Part::File(_)) | None => {
                Err(Fault::failed(format!("{url} does not say what it serves")))
            }
        }
    }

    /// Asks and reads the answer to its end. A worker is asked for as many ids as the prompt has words, drawn from them.
    pub(super) async fn ask(&self, prompt: String, max_tokens: u32) -> Sample {
        let mut watch = Watch::start();
        let end = match self {
            Self::OpenAi(openai) => watch.text(openai.request(prompt, max_tokens)).await,
            Self::Worker(worker) => watch.tokens(worker, &prompt, max_tokens).await,
        };
        watch.sample(end)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenAi(openai) => &openai.url,
            Self::Worker(worker) => &worker.url,
        })
    }
}

impl OpenAi {
    fn request(&self, prompt: String, max_tokens: u32) -> reqwest::RequestBuilder {
        let mut body = json!({"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true}});
        if !self.plain {
            body["ignore_eos"] = json!(true);
        }
        let request = self.http.post(&self.url).header("content-type", "application/json").body(body.to_string());
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

impl Worker {
    fn request(&self, prompt: &str, max_tokens: u32) -> WorkerGenerateRequest {
        // A word's id is a function of its letters, so that equal prefixes stay equal.
        let id = |word: &str| word.bytes().fold(7u32, |id, byte| id.wrapping_mul(31) + u32::from(byte));
        let sampling = SamplingParams {
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        WorkerGenerateRequest {
            request_id: RequestId::generate().to_string(),
            tenant: "default".to_owned(),
            priority: wire::Priority::Interactive.into(),
            deadline_unix_ms: u64::try_from((time::unix_now() + DEADLINE).as_millis()).unwrap_or(u64::MAX),
            class: wire::DataClass::Public.into(),
            model_digest: self.card.digest.clone(),
            prompt_ids: prompt.split(' ').map(|word| id(word) % self.card.vocab_size).collect(),
            sampling: Some(sampling),
            ..WorkerGenerateRequest::default()
        }
    }
}

/// Takes the times of one answer.
struct Watch {
    start: Instant,
    last: Instant,
    ttft: Option<Duration>,
    gaps: Vec<Duration>,
    usage: Option<(u64, u64)>,
}

impl Watch {
    fn start() -> Self {
        let start = Instant::now();
        Self { start, last: start, ttft: None, gaps: Vec::new(), usage: None }
    }

    async fn text(&mut self, request: reqwest::RequestBuilder) -> Ending {
        let failed = |error: reqwest::Error| (Outcome::Failed, error.to_string());
        let response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        if status != 200 {
            let outcome = if matches!(status, 429 | 503) { Outcome::Rejected } else { Outcome::Failed };
            return Err((outcome, format!("{status}: {}", response.text().await.unwrap_or_default())));
        }
        let mut stream = response.bytes_stream();
        let mut events = Events::default();
        while let Some(bytes) = stream.next().await {
            for data in events.push(&bytes.map_err(failed)?) {
                if data == "[DONE]" {
                    return Ok(());
                }
                self.chunk(&data)?;
            }
        }
        Err((Outcome::Failed, "the stream ended without [DONE]".to_owned()))
    }

    fn chunk(&mut self, data: &str) -> Ending {
        let chunk: Value = serde_json::from_str(data).map_err(|error| (Outcome::Failed, error.to_string()))?;
        if !chunk["error"].is_null() {
            return Err((Outcome::Failed, chunk["error"].to_string()));
        }
        let usage = &chunk["usage"];
        if let (Some(prompt), Some(made)) = (usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()) {
            self.usage = Some((prompt, made));
        }
        if chunk["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            self.piece();
        }
        Ok(())
    }

    async fn tokens(&mut self, worker: &Worker, prompt: &str, max_tokens: u32) -> Ending {
        let failed = |status: tonic::Status| match status.code() {
            tonic::Code::Unavailable | tonic::Code::ResourceExhausted => (Outcome::Rejected, status.to_string()),
            _ => (Outcome::Failed, status.to_string()),
        };
        let call = worker.client.clone().generate(worker.request(prompt, max_tokens)).await;
        let mut stream = call.map_err(failed)?.into_inner();
        while let Some(event) = stream.message().await.map_err(failed)? {
            match event.event {
                Some(worker_generate_event::Event::Tokens(_)) => self.piece(),
                Some(worker_generate_event::Event::Finished(finished)) => {
                    self.usage = Some((finished.prompt_tokens.into(), finished.output_tokens.into()));
                }
                Some(worker_generate_event::Event::Drain(_)) | None => {}
            }
        }
        match self.usage {
            Some(_) => Ok(()),
            None => Err((Outcome::Failed, "the stream ended without a finish".to_owned())),
        }
    }

    fn piece(&mut self) {
        let now = Instant::now();
        match self.ttft {
            None => self.ttft = Some(now - self.start),
            Some(_) => self.gaps.push(now - self.last),
        }
        self.last = now;
    }

    fn sample(self, end: Ending) -> Sample {
        let (outcome, problem) = match end {
            Ok(()) => (Outcome::Ok, None),
            Err((outcome, problem)) => (outcome, Some(problem)),
        };
        let pieces = self.gaps.len() as u64 + u64::from(self.ttft.is_some());
        let (prompt_tokens, tokens) = self.usage.unwrap_or((0, pieces));
        let total = self.start.elapsed();
        Sample { outcome, problem, ttft: self.ttft, gaps: self.gaps, total, prompt_tokens, tokens }
    }
}
