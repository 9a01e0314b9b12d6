//! The gRPC face: `penstock.v1.Inference` over the same answers as the HTTP faces. It only converts.

mod decode;
mod tools;

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::HeaderMap;
use http::request::Parts;
use penstock_proto::inference as wire;
use penstock_proto::{RequestId, headers};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::answers::Answers;
use super::caller::{Asking, Caller};
use super::head::{self, Head};
use super::{Api, Notes, log, tell};
use crate::fleet::Fleet;
use crate::metrics::{Observation, Route};
use crate::port::{Arrived, Door, Health, Port, Service, refusal};
use crate::request::{Delta, Failure, FinishReason, RankedToken, TokenLogprob, ToolCallDelta};
use crate::server::{Error, Listen};

/// Serves the face on a port whose health is `fleet`'s.
pub(crate) async fn start(listen: Listen, api: Arc<Api>, fleet: Fleet) -> Result<Port, Error> {
    let face = wire::InferenceServer::new(Face(Arc::clone(&api))).max_decoding_message_size(listen.limits.body_bytes);
    let service = Service { name: "penstock.v1.Inference", routes: Routes::new(face), door: api };
    let port = Port::start(listen, service, CancellationToken::new()).await?;
    TaskTracker::new().spawn(tell_health(port.health(), fleet));
    Ok(port)
}

/// Keeps the health service's answer true until the port drains. It has been told that nothing is served.
async fn tell_health(health: Health, mut fleet: Fleet) {
    let mut told = false;
    while !health.draining().is_cancelled() {
        let serves = fleet.serves();
        if serves != told {
            health.tell(serves).await;
            told = serves;
        }
        health.draining().run_until_cancelled(fleet.changed()).await;
    }
    health.tell(false).await;
}

impl Door for Api {
    fn admit(&self, head: &Parts) -> Result<(), Failure> {
        // Who has a key is asked when a call is there; health and reflection want none.
        if self.rulings.book()?.is_keyless() { self.admit_keyless(head, self.config.grpc) } else { Ok(()) }
    }

    fn refused(&self, failure: &Failure) {
        self.metrics.observe(Route::Unknown).failed(failure);
        log(RequestId::generate(), failure);
    }
}

/// The service over the faces' common part.
#[derive(Clone)]
struct Face(Arc<Api>);

#[tonic::async_trait]
impl wire::Inference for Face {
    type GenerateStream = BoxStream<'static, Result<wire::GenerateResponse, Status>>;

    async fn generate(
        &self,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let observation = self.0.metrics.observe(Route::Generate);
        let call = Incoming::of(&request);
        let mut notes = Notes::default();
        let answers = self.start(&call, request, &mut notes, observation).await;
        let id = call.id;
        call.respond(notes, answers.map(|answers| pieces(answers, id)))
    }

    async fn list_models(
        &self,
        request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        let mut observation = self.0.metrics.observe(Route::ListModels);
        let call = Incoming::of(&request);
        let mut notes = Notes::default();
        let api = &self.0;
        let result = async {
            let caller = api.caller(api.rulings.book()?, request.metadata().as_ref()).await?;
            observation.asked_by(&caller.tenant);
            notes.class = Some(caller.class_of(&self.head(&call, &caller, request.metadata())?));
            let served = |name: String| match api.known(&caller, &name)? {
                (Some(own), _) if !own.is_served() => None,
                (own, _) => {
                    let context_length = own.map_or(0, |own| own.card.context_length);
                    Some(wire::Model { name, context_length })
                }
            };
            Ok(wire::ListModelsResponse { models: api.names(&caller).into_iter().filter_map(served).collect() })
        };
        let result = result.await;
        match &result {
            Ok(_) => observation.done(),
            Err(failure) => observation.failed(failure),
        }
        call.respond(notes, result)
    }
}

impl Face {
    async fn start(
        &self,
        call: &Incoming,
        request: Request<wire::GenerateRequest>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Answers, Failure> {
        let api = &self.0;
        let admitted = async {
            let caller = api.caller(api.rulings.book()?, request.metadata().as_ref()).await?;
            observation.asked_by(&caller.tenant);
            let head = self.head(call, &caller, request.metadata())?;
            notes.class = Some(caller.class_of(&head));
            Ok((caller, head))
        };
        let (caller, head) = match admitted.await {
            Ok(admitted) => admitted,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        let decoded = decode::request(request.into_inner(), &head, caller.tenant.clone(), caller.class_of(&head));
        let decoded = decoded.map(|request| (request, true, ()));
        let asking = Asking { head: &head, caller: &caller, body: None, streams: true };
        let (begun, _, ()) = api.answer_one(asking, decoded, notes, observation).await?;
        Ok(begun.answers)
    }

    /// A call's metadata, read. Of two deadlines the nearer one counts.
    fn head(&self, call: &Incoming, caller: &Caller, metadata: &MetadataMap) -> Result<Head, Failure> {
        let map: &HeaderMap = metadata.as_ref();
        let mut head = head::read(map, call.id, call.arrived, caller.defaults)?;
        if let Some(timeout) = head::grpc_timeout(map)? {
            let deadline = call.arrived + timeout;
            // The default is for those who name none.
            let both = map.contains_key(headers::DEADLINE_MS);
            head.deadline = if both { head.deadline.min(deadline) } else { deadline };
        }
        Ok(head)
    }
}

/// A call that has come.
struct Incoming {
    id: RequestId,
    client_id: Option<http::HeaderValue>,
    arrived: Instant,
}

impl Incoming {
    fn of<T>(request: &Request<T>) -> Self {
        let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        Self { id: RequestId::generate(), client_id: head::client_id(request.metadata().as_ref()), arrived }
    }

    /// The response, or the status that refuses it, each with the same metadata as an answer over HTTP.
    fn respond<T>(self, notes: Notes, result: Result<T, Failure>) -> Result<Response<T>, Status> {
        let mut map = HeaderMap::new();
        tell(&mut map, self.id, self.client_id, notes);
        let metadata = MetadataMap::from_headers(map);
        match result {
            Ok(message) => {
                let mut response = Response::new(message);
                *response.metadata_mut() = metadata;
                Ok(response)
            }
            Err(failure) => {
                log(self.id, &failure);
                let mut status = refusal(&failure);
                *status.metadata_mut() = metadata;
                Err(status)
            }
        }
    }
}

/// The answer's pieces as messages. A failure is the stream's final status. Dropping the stream aborts the work.
fn pieces(answers: Answers, id: RequestId) -> BoxStream<'static, Result<wire::GenerateResponse, Status>> {
    let next = move |mut answers: Answers| async move {
        let message = match answers.next().await? {
            Ok((_, delta)) => Ok(piece(delta)),
            Err(failure) => {
                log(id, &failure);
                Err(refusal(&failure))
            }
        };
        Some((message, answers))
    };
    stream::unfold(answers, next).boxed()
}

fn piece(delta: Delta) -> wire::GenerateResponse {
    let reason = delta.finish.as_ref().map_or(wire::FinishReason::Unspecified, |finish| match finish.reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
        FinishReason::ToolCalls => wire::FinishReason::ToolCalls,
    });
    let usage = delta.finish.map(|finish| wire::Usage {
        prompt_tokens: finish.usage.prompt_tokens,
        cached_tokens: finish.usage.cached_tokens,
        completion_tokens: finish.usage.completion_tokens,
    });
    let ranked = |token: RankedToken| wire::RankedText { text: token.bytes, logprob: token.logprob };
    let logprob = |told: TokenLogprob| wire::TextLogprob {
        token: Some(ranked(told.token)),
        top: told.top.into_iter().map(ranked).collect(),
    };
    let logprobs = delta.logprobs.into_iter().map(logprob).collect();
    let tool_calls = delta.tool_calls.into_iter().map(piece_of_call).collect();
    wire::GenerateResponse { text: delta.text, finish_reason: reason.into(), usage, logprobs, tool_calls }
}

fn piece_of_call(piece: ToolCallDelta) -> wire::ToolCallDelta {
    let (id, name) = piece.start.map(|start| (start.id, start.name)).unwrap_or_default();
    wire::ToolCallDelta { index: piece.index, id, name, arguments_json: piece.arguments }
}
