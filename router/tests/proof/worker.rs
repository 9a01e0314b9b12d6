//! Workers that answer every call by themselves, mostly well, and can be killed.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use penstock_cluster::membership::{Member, MemberState, PROTOCOL, ServedModel};
use penstock_proto::worker::{
    DrainRequest, DrainResponse, FileChunk, FileInfo, FinishReason, Finished, GetLoadRequest, GetModelRequest,
    GetModelResponse, Load, ModelCard, Tokens, WatchLoadRequest, Worker, WorkerGenerateEvent, WorkerGenerateRequest,
    get_model_response, worker_generate_event,
};
use penstock_proto::{ModelName, WorkerName};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use crate::model::files;

/// What the workers serve.
pub(crate) const MODEL: &str = "parrot";
/// Three special tokens and one for every byte.
const VOCABULARY: u32 = 259;
const DIGEST: &str = "d1";

/// The ids that spell a text: a byte each.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) + 3).collect()
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: WorkerName::new(name).unwrap(),
        endpoint: format!("inprocess:{name}"),
        models: vec![ServedModel { name: ModelName::new(MODEL).unwrap(), digest: DIGEST.to_owned() }],
        state: MemberState::Ready,
        protocol: PROTOCOL,
        epoch: Default::default(),
    }
}

pub(crate) struct Parrot;

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Worker for Parrot {
    type GetModelStream = Answers<GetModelResponse>;
    type GenerateStream = Answers<WorkerGenerateEvent>;
    type WatchLoadStream = Answers<Load>;

    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<Self::GetModelStream>, Status> {
        let files = files();
        let info = |(name, data): (&String, &Vec<u8>)| FileInfo {
            name: name.clone(),
            size: data.len() as u64,
            digest: Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let card = ModelCard {
            name: MODEL.to_owned(),
            digest: DIGEST.to_owned(),
            context_length: 8192,
            vocab_size: VOCABULARY,
            files: files.iter().map(info).collect(),
            ..ModelCard::default()
        };
        let file = |(name, data)| get_model_response::Part::File(FileChunk { name, data });
        let parts = std::iter::once(get_model_response::Part::Card(card)).chain(files.into_iter().map(file));
        let parts: Vec<_> = parts.map(|part| Ok(GetModelResponse { part: Some(part) })).collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn generate(
        &self,
        request: Request<WorkerGenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let prompt_tokens = u32::try_from(request.into_inner().prompt_ids.len()).unwrap_or(u32::MAX);
        let said = ids("from home");
        let output_tokens = u32::try_from(said.len()).unwrap_or(u32::MAX);
        let event = |at, event| Ok(WorkerGenerateEvent { sequence_number: at, event: Some(event), cached_tokens: 0 });
        let tokens = worker_generate_event::Event::Tokens(Tokens { ids: said, logprobs: Vec::new() });
        let end = Finished { reason: FinishReason::Stop.into(), prompt_tokens, output_tokens, ..Finished::default() };
        let last = match fastrand::u32(..100) {
            0 => Err(Status::unavailable("the worker is lost")),
            1 => return Err(Status::unavailable("the worker is lost")),
            _ => event(u64::from(output_tokens), worker_generate_event::Event::Finished(end)),
        };
        Ok(Response::new(stream::iter([event(0, tokens), last]).boxed()))
    }

    async fn get_load(&self, _: Request<GetLoadRequest>) -> Result<Response<Load>, Status> {
        Ok(Response::new(Load { predicted_wait_seconds: 0.25, prefill_rate: 1000.0, ..Load::default() }))
    }

    async fn watch_load(&self, _: Request<WatchLoadRequest>) -> Result<Response<Self::WatchLoadStream>, Status> {
        Err(Status::unimplemented("not asked by routers yet"))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Ok(Response::new(DrainResponse {}))
    }
}
