//! The faces' common part: what a request's head says, which face it is for, what every answer's head says.

mod answers;
mod anthropic;
mod blocks;
mod bounds;
mod caller;
mod calling;
mod events;
mod face;
pub(crate) mod grpc;
mod guard;
mod head;
mod json;
mod openai;
mod responses;
mod spec;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use penstock_proto::{DataClass, ErrorCode, Fault, RequestId, headers};
use tokio::time::Instant;

use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::metrics::{Metrics, Observation};
use crate::request::Failure;
use crate::ruling::Rulings;
use crate::server::{self, Body, RequestBody, full};
use crate::tenant::Limiter;
use face::{Call, Face};

/// Names of ignored fields that an answer's head lists, and the longest of them.
const IGNORED_LIMIT: usize = 32;
const IGNORED_NAME_LIMIT: usize = 64;
/// How much of a path a refusal repeats.
const PATH_SHOWN: usize = 64;
/// After how many seconds to come back, where a failure does not say.
const RETRY_AFTER: u32 = 1;

/// The faces over one fleet.
pub(crate) struct Api {
    config: Config,
    rulings: Arc<Rulings>,
    limiter: Arc<Limiter>,
    dispatch: Dispatch,
    metrics: Arc<Metrics>,
}

/// What a face answers.
enum Reply {
    Json(StatusCode, Bytes),
    Events(BoxStream<'static, Bytes>),
}

/// What an answer's head tells beside the answer.
#[derive(Default)]
struct Notes {
    class: Option<DataClass>,
    target: Option<String>,
    ignored: Vec<String>,
}

impl Api {
    pub(crate) fn new(
        config: Config,
        rulings: Arc<Rulings>,
        limiter: Arc<Limiter>,
        (dispatch, metrics): (Dispatch, Arc<Metrics>),
    ) -> Self {
        Self { config, rulings, limiter, dispatch, metrics }
    }

    /// Answers one request. Dropping the future, or the body of its answer, ends the work for it.
    pub(crate) async fn answer(self: Arc<Self>, request: http::Request<RequestBody>) -> Response<Body> {
        let id = RequestId::generate();
        let client_id = head::client_id(request.headers());
        let face = Face::of(request.uri().path());
        let route = face.route(request.method(), request.uri().path());
        let observation = self.metrics.observe(route);
        let mut notes = Notes::default();
        let result = self.reply(request, id, &mut notes, observation).await;
        if let Err(failure) = &result {
            log(id, failure);
        }
        let mut response = respond(result, |failure| face.render_error(failure, id));
        tell(response.headers_mut(), id, client_id, notes);
        if face == Face::Anthropic {
            response.headers_mut().insert(anthropic::REQUEST_ID, visible(&id.to_string()));
        }
        response
    }

    async fn reply(
        &self,
        request: http::Request<RequestBody>,
        id: RequestId,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Reply, Failure> {
        let (parts, body) = request.into_parts();
        let read = async {
            let caller = self.admit(&parts, self.config.http).await?;
            observation.asked_by(&caller.tenant);
            let head = head::read(&parts.headers, id, Instant::now(), caller.defaults)?;
            notes.class = Some(caller.class_of(&head));
            let body = server::body::read(body, &self.config.limits).await?;
            Ok((caller, head, body))
        };
        let (caller, head, body) = match read.await {
            Ok(read) => read,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        let call = Call { method: &parts.method, path: parts.uri.path(), head: &head, caller: &caller, body };
        Face::of(parts.uri.path()).answer(self, call, notes, observation).await
    }
}

impl Notes {
    fn write(mut self, map: &mut HeaderMap) {
        if let Some(class) = self.class {
            map.insert(headers::CLASS, HeaderValue::from_static(class.as_str()));
        }
        if let Some(target) = &self.target {
            map.insert(headers::TARGET, visible(target));
        }
        if !self.ignored.is_empty() {
            self.ignored.sort_unstable();
            let names: Vec<String> = self.ignored.iter().take(IGNORED_LIMIT).map(|name| plain(name)).collect();
            map.insert(headers::IGNORED, visible(&names.join(",")));
        }
    }
}

/// Writes what the head of every answer says.
fn tell(map: &mut HeaderMap, id: RequestId, client_id: Option<HeaderValue>, notes: Notes) {
    map.insert(headers::PENSTOCK_REQUEST_ID, visible(&id.to_string()));
    if let Some(client_id) = client_id {
        map.insert(headers::REQUEST_ID, client_id);
    }
    notes.write(map);
}

/// A name that a client made up, fit for a header: its first characters, those that are not plain as `?`.
fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.[]".contains(c) { c } else { '?' };
    name.chars().take(IGNORED_NAME_LIMIT).map(plain).collect()
}

fn visible(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

fn respond(result: Result<Reply, Failure>, render_error: impl Fn(&Failure) -> Bytes) -> Response<Body> {
    match result {
        Ok(Reply::Json(status, body)) => json(status, body),
        Ok(Reply::Events(events)) => {
            let frames = events.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            let map = response.headers_mut();
            map.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        Err(failure) => {
            let status = StatusCode::from_u16(failure.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = json(status, render_error(&failure));
            if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                let seconds = failure.retry_after.unwrap_or(RETRY_AFTER);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn not_found(method: &Method, path: &str) -> Failure {
    let path: String = path.chars().take(PATH_SHOWN).collect();
    Failure::new(ErrorCode::NotFound, format!("there is no {method} {path}"))
}

fn log(id: RequestId, failure: &Failure) {
    let code = failure.code.as_str();
    match failure.code.fault() {
        Fault::Caller | Fault::Policy => tracing::debug!(request = %id, code, "request refused"),
        Fault::Capacity | Fault::Provider => tracing::warn!(request = %id, code, "request failed"),
        Fault::Internal => tracing::error!(request = %id, code, message = failure.message, "request failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_names_are_plain_and_bounded() {
        let mut map = HeaderMap::new();
        let ignored = vec!["b\r\nset-cookie: x".to_owned(), "a".to_owned(), "é".repeat(99)];
        Notes { ignored, ..Notes::default() }.write(&mut map);
        let written = map[headers::IGNORED].to_str().unwrap();
        assert_eq!(written, format!("a,b??set-cookie??x,{}", "?".repeat(64)));
        let ignored = (0..1000).map(|n| n.to_string()).collect();
        Notes { ignored, ..Notes::default() }.write(&mut map);
        assert_eq!(map[headers::IGNORED].to_str().unwrap().split(',').count(), 32);
    }

    #[test]
    fn a_busy_answer_says_when_to_come_back() {
        let response = respond(Err(Failure::new(ErrorCode::NoWorker, "nobody")), openai::render_error);
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &HeaderValue::from(1)));
        let response = respond(Err(Failure::new(ErrorCode::NotFound, "no")), openai::render_error);
        assert!(!response.headers().contains_key("retry-after"));
    }
}
