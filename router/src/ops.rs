//! The operators' port of any process: `/metrics`, `/healthz`, `/readyz`. What they say comes in as functions, so that
//! router and worker share it without knowing each other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Method, Response, StatusCode, header};
use serde::Serialize;

use crate::config::Limits;
use crate::server::{Body, Error, Handler, Listen, Server, full};

/// Whether a process takes new work; it does if there is no reason against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why not: sentences for an operator.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Whether nothing stands against new work.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// What the port says.
#[derive(Clone)]
pub struct Sources {
    /// The metrics in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whether the process takes new work now.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// A serving operators' port; dropping it ends it.
pub struct Ops {
    server: Server,
}

impl Ops {
    /// Listens on `address`; port 0 takes a free one.
    pub async fn start(address: SocketAddr, sources: Sources) -> Result<Self, Error> {
        let handler: Handler = Arc::new(move |request| {
            let response = answer(&sources, request.method(), request.uri().path());
            std::future::ready(response).boxed()
        });
        let listen = Listen { address, flag: "--ops", tls: None, limits: Limits::default() };
        Ok(Self { server: Server::start(listen, handler).await? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Answers what is in flight and ends.
    pub async fn drain(self, grace: Duration) {
        self.server.drain(grace).await;
    }
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    reasons: &'a [String],
}

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

fn answer(sources: &Sources, method: &Method, path: &str) -> Response<Body> {
    match (method, path) {
        (&Method::GET, "/metrics") => reply(StatusCode::OK, TEXT, (sources.metrics)()),
        (&Method::GET, "/healthz") => health(StatusCode::OK, "ok", &[]),
        (&Method::GET, "/readyz") => {
            let Readiness { reasons } = (sources.readiness)();
            if reasons.is_empty() {
                health(StatusCode::OK, "ready", &reasons)
            } else {
                health(StatusCode::SERVICE_UNAVAILABLE, "not ready", &reasons)
            }
        }
        _ => {
            let reason = "this port serves GET /metrics, /healthz and /readyz".to_owned();
            health(StatusCode::NOT_FOUND, "not found", &[reason])
        }
    }
}

fn health(status: StatusCode, word: &'static str, reasons: &[String]) -> Response<Body> {
    let body = serde_json::to_string(&Health { status: word, reasons }).expect("strings serialise");
    reply(status, JSON, body)
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(readiness: Readiness, method: Method, path: &str) -> (u16, String) {
        let sources = Sources {
            metrics: Arc::new(|| "penstock_up 1\n".to_owned()),
            readiness: Arc::new(move || readiness.clone()),
        };
        let response = answer(&sources, &method, path);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_is_told_with_its_reasons() {
        let ready = ask(Readiness::default(), Method::GET, "/readyz").await;
        assert_eq!(ready, (200, r#"{"status":"ready","reasons":[]}"#.to_owned()));
        let reasons = vec!["no model is served yet".to_owned()];
        let not = ask(Readiness { reasons: reasons.clone() }, Method::GET, "/readyz").await;
        assert_eq!(not, (503, r#"{"status":"not ready","reasons":["no model is served yet"]}"#.to_owned()));
        let health = ask(Readiness { reasons }, Method::GET, "/healthz").await;
        assert_eq!(health.0, 200);
    }

    #[tokio::test]
    async fn metrics_are_text_and_the_rest_is_not_found() {
        assert_eq!(ask(Readiness::default(), Method::GET, "/metrics").await, (200, "penstock_up 1\n".to_owned()));
        assert_eq!(ask(Readiness::default(), Method::POST, "/metrics").await.0, 404);
        assert_eq!(ask(Readiness::default(), Method::GET, "/").await.0, 404);
    }
}
