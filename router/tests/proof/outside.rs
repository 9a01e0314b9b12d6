//! Upstreams that keep every byte that they are sent, and answer well, badly or not at all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::world::Side;

/// What an upstream was sent in one call.
pub(crate) struct Sent {
    pub(crate) side: Side,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether something came after the body.
    pub(crate) trailed: bool,
}

pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    bad_weather: Arc<AtomicBool>,
    _serving: JoinSet<()>,
}

impl Outside {
    /// Serves; what it is sent goes to `told` before it answers.
    pub(crate) async fn start(side: Side, told: mpsc::UnboundedSender<Sent>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let bad_weather = Arc::new(AtomicBool::new(false));
        let weather = Arc::clone(&bad_weather);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (told, weather) = (told.clone(), Arc::clone(&weather));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (told, bad) = (told.clone(), weather.load(Ordering::Relaxed));
                    async move {
                        let sent = read(side, request).await;
                        let path = sent.path.clone();
                        drop(told.send(sent));
                        Ok::<_, Infallible>(answer(side, &path, bad))
                    }
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, bad_weather, _serving: serving }
    }

    /// Whether most calls fail from now on.
    pub(crate) fn has_bad_weather(&self, bad: bool) {
        self.bad_weather.store(bad, Ordering::Relaxed);
    }
}

async fn read(side: Side, request: Request<Incoming>) -> Sent {
    let (head, mut incoming) = request.into_parts();
    let (mut body, mut trailed) = (Vec::new(), false);
    while let Some(Ok(frame)) = incoming.frame().await {
        match frame.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(_) => trailed = true,
        }
    }
    let (method, path) = (head.method.to_string(), head.uri.to_string());
    Sent { side, method, path, headers: head.headers, body: body.into(), trailed }
}

type Body = BoxBody<Bytes, std::io::Error>;

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

/// Pieces, after which the connection breaks.
fn broken(pieces: Vec<String>) -> Body {
    let pieces = pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::from(piece))));
    let last = std::iter::once(Err(std::io::Error::other("closed")));
    http_body_util::BodyExt::boxed(StreamBody::new(stream::iter(pieces.chain(last).collect::<Vec<_>>())))
}

/// A piece, after which nothing comes.
fn stalled(piece: &str) -> Body {
    let piece = Ok(Frame::data(Bytes::from(piece.to_owned())));
    let body = stream::iter([piece]).chain(stream::pending());
    http_body_util::BodyExt::boxed(StreamBody::new(body))
}

fn answer(side: Side, path: &str, bad: bool) -> Response<Body> {
    let text = path.ends_with("/completions") && !path.ends_with("/chat/completions");
    let events = match (side, text) {
        (Side::Acme, false) => chat(),
        (Side::Acme, true) => completion(),
        (Side::Ocean, _) => message(),
    };
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}).to_string();
    let fault = if bad { fastrand::u32(..14) } else { fastrand::u32(..160) };
    let (status, kind, body) = match fault {
        0 => (500, "application/json", whole(error)),
        1 => (503, "application/json", whole(error)),
        2 => (429, "application/json", whole(error)),
        3 => (200, "text/event-stream", broken(events[..1].to_vec())),
        4 => (200, "text/event-stream", broken(vec![events[0][..events[0].len() / 2].to_owned()])),
        5 => (200, "text/event-stream", whole("data: {\"choices\":[{\n\n")),
        6 => (200, "text/html", whole("<html>hello</html>")),
        7 => (200, "application/json", whole("{\"choices\":")),
        8 => (200, "text/event-stream", whole(format!("{}event: error\ndata: {error}\n\n", events[0]))),
        9 => (307, "application/json", whole("")),
        10 => (400, "application/json", whole(error)),
        11 => (200, "text/event-stream", stalled(&events[0])),
        12 => (200, "text/event-stream", stalled(": wait\n\n")),
        _ => (200, "text/event-stream", whole(events.concat())),
    };
    let mut answer = Response::builder().status(status).header("content-type", kind);
    // What a client must not believe.
    for (name, value) in FORGED {
        answer = answer.header(name, value);
    }
    if status == 307 {
        answer = answer.header("location", "http://127.0.0.1:1/v1/chat/completions");
    }
    answer.body(body).unwrap()
}

/// Headers that only the router may set.
pub(crate) const FORGED: [(&str, &str); 5] = [
    ("x-penstock-target", "forged/forged"),
    ("x-penstock-class", "forged"),
    ("x-penstock-request-id", "forged"),
    ("x-penstock-ignored", "forged"),
    ("x-request-id", "forged"),
];

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn chunks(choices: [Value; 2]) -> Vec<String> {
    let chunk = |choices: Value| json!({"id": "c", "created": 1, "model": "big", "choices": choices});
    let mut events: Vec<String> = choices.into_iter().map(|choice| data(&chunk(json!([choice])))).collect();
    let mut end = chunk(json!([]));
    end["usage"] = json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11});
    events.extend([data(&end), "data: [DONE]\n\n".to_owned()]);
    events
}

fn chat() -> Vec<String> {
    chunks([
        json!({"index": 0, "delta": {"role": "assistant", "content": "from outside"}, "finish_reason": null}),
        json!({"index": 0, "delta": {}, "finish_reason": "stop"}),
    ])
}

fn completion() -> Vec<String> {
    chunks([
        json!({"index": 0, "text": "from outside", "finish_reason": null}),
        json!({"index": 0, "text": "", "finish_reason": "stop"}),
    ])
}

fn message() -> Vec<String> {
    let usage = json!({"input_tokens": 9, "output_tokens": 1});
    let start = json!({"id": "m", "type": "message", "role": "assistant", "model": "large", "content": [],
                       "stop_reason": null, "stop_sequence": null, "usage": usage});
    let events = [
        json!({"type": "message_start", "message": start}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "from outside"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
        json!({"type": "message_stop"}),
    ];
    events.iter().map(|event| format!("event: {}\n{}", event["type"].as_str().unwrap(), data(event))).collect()
}
