//! An upstream that keeps what it was sent, and answers each call with a word and its usage.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::soon;

pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    calls: mpsc::UnboundedReceiver<(HeaderMap, Value)>,
    status: Arc<AtomicU16>,
    usage: Arc<Mutex<Value>>,
    _serving: JoinSet<()>,
}

impl Outside {
    /// Serves `POST /v1/chat/completions`, streaming.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, calls) = mpsc::unbounded_channel();
        let status = Arc::new(AtomicU16::new(200));
        let answered = Arc::clone(&status);
        let usage = Arc::new(Mutex::new(json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11})));
        let told_usage = Arc::clone(&usage);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (told, answered, usage) = (told.clone(), Arc::clone(&answered), Arc::clone(&told_usage));
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (told, status) = (told.clone(), answered.load(Ordering::SeqCst));
                    let usage = usage.lock().unwrap().clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        told.send((head.headers, serde_json::from_slice(&body).unwrap())).unwrap();
                        Ok::<_, Infallible>(answer(status, &usage))
                    }
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, calls, status, usage, _serving: serving }
    }

    /// Every call from now on is answered with this status.
    pub(crate) fn answers_with(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Every answer from now on has this as its usage block.
    pub(crate) fn tells(&self, usage: Value) {
        *self.usage.lock().unwrap() = usage;
    }

    /// The head and the body of the next call.
    pub(crate) async fn call(&mut self) -> (HeaderMap, Value) {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Whether there is no call that nobody took.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }
}

fn answer(status: u16, usage: &Value) -> Response<Full<Bytes>> {
    let chunk = |delta: Value, finish: Value| {
        json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big",
               "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    };
    let usage = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big", "choices": [],
                       "usage": usage});
    let events = [
        chunk(json!({"role": "assistant", "content": "from outside"}), Value::Null),
        chunk(json!({}), json!("stop")),
        usage,
    ];
    let events = events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>() + "data: [DONE]\n\n";
    let (kind, body) = match status {
        200 => ("text/event-stream", events),
        _ => ("application/json", json!({"error": {"message": "no", "type": "server_error"}}).to_string()),
    };
    Response::builder().status(status).header("content-type", kind).body(Full::new(Bytes::from(body))).unwrap()
}
