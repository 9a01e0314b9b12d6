//! What this crate's tests start: a worker over the scripted runner, with a channel to it.

use std::sync::Arc;
use std::time::Duration;

use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_proto::worker::{
    DataClass, Priority, SamplingParams, WorkerClient, WorkerGenerateEvent, WorkerGenerateRequest,
    worker_generate_event,
};
use penstock_proto::{RequestId, WorkerName, time};
use prometheus::Registry;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::artifact::Digest;
use crate::lifecycle::{Observers, Parts, Stage, Worker};
use crate::model::{Card, Served};
use crate::tokenizer::TextFile;

pub(crate) const EOS: u32 = 511;

pub(crate) struct Fixture {
    pub(crate) worker: Worker,
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) registry: Registry,
    pub(crate) stage: watch::Receiver<Stage>,
}

/// A step that gives a test time to act while a sequence runs.
pub(crate) fn slow() -> Script {
    Script { step: Duration::from_millis(2), ..Script::default() }
}

impl Fixture {
    pub(crate) fn new(script: Script) -> Self {
        Self::with_drain_timeout(script, Duration::from_secs(60))
    }

    pub(crate) fn with_drain_timeout(script: Script, drain_timeout: Duration) -> Self {
        let (stage, told) = watch::channel(Stage::Loading);
        let registry = Registry::new();
        let observers = Observers { registry: registry.clone(), stage, report: Arc::new(|_| {}) };
        let name = WorkerName::new("w1").unwrap();
        let files = vec![file("tokenizer.json", tokenizer(600_000)), file("generation_config.json", b"{}".to_vec())];
        let served = Served { card: card(), files };
        let engine = penstock_engine::Config { eos_token_ids: vec![EOS], ..penstock_engine::Config::default() };
        let parts = Parts { name, served, runner: Box::new(ScriptedRunner::new(script)), engine, drain_timeout };
        let worker = Worker::start(parts, &observers).unwrap();
        let client = WorkerClient::new(worker.in_process());
        Self { worker, client, registry, stage: told }
    }

    pub(crate) async fn generate(
        &self,
        request: WorkerGenerateRequest,
    ) -> Result<Streaming<WorkerGenerateEvent>, Status> {
        self.client.clone().generate(request).await.map(tonic::Response::into_inner)
    }
}

fn file(name: &'static str, bytes: Vec<u8>) -> TextFile {
    TextFile { name, digest: Digest::of_bytes(&bytes), bytes: bytes.into() }
}

/// A tokenizer whose tokens are the bytes, and an end; spaces make it as long as wanted.
fn tokenizer(size: usize) -> Vec<u8> {
    let vocab: serde_json::Map<_, _> =
        (b'!'..=b'~').map(|byte| (char::from(byte).to_string(), u32::from(byte).into())).collect();
    let end = serde_json::json!({ "id": EOS, "content": "<end>", "special": true });
    let decoder = serde_json::json!({ "type": "ByteLevel" });
    let tokenizer = serde_json::json!({ "added_tokens": [end], "decoder": decoder, "model": { "vocab": vocab } });
    let mut bytes = tokenizer.to_string().into_bytes();
    bytes.resize(size, b' ');
    bytes
}

pub(crate) fn card() -> Card {
    Card {
        name: "scripted".into(),
        digest: Digest::of_bytes(b"weights"),
        architecture: "scripted".into(),
        quantisation: "F32".into(),
        parameters: 1,
        context_length: 2048,
        vocab_size: 512,
        eos_token_ids: vec![EOS],
        numerics: "scripted".into(),
    }
}

/// Three tokens of prompt, `max_tokens` of answer, whatever is drawn.
pub(crate) fn request(max_tokens: u32) -> WorkerGenerateRequest {
    WorkerGenerateRequest {
        request_id: RequestId::generate().to_string(),
        tenant: "default".into(),
        priority: Priority::Interactive.into(),
        deadline_unix_ms: (time::unix_now() + Duration::from_secs(60)).as_millis() as u64,
        class: DataClass::Internal.into(),
        cache_salt: Vec::new(),
        model_digest: card().digest.to_string(),
        adapter_digest: String::new(),
        prompt_ids: vec![1, 2, 3],
        resume_tokens: Vec::new(),
        sampling: Some(SamplingParams {
            seed: 7,
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens,
            ignore_eos: true,
            ..SamplingParams::default()
        }),
        constraint: None,
    }
}

/// The event inside a message.
pub(crate) fn event(message: WorkerGenerateEvent) -> (u64, worker_generate_event::Event) {
    (message.sequence_number, message.event.unwrap())
}
