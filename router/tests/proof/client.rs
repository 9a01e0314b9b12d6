//! A client: one connection to the HTTP faces, one to gRPC's.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use penstock_proto::inference::InferenceClient;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::places::Face;
use crate::plan::Plan;

/// What came of a request.
pub(crate) struct Outcome {
    pub(crate) headers: HeaderMap,
    /// `ok` for an answer to its end; the error's code, or what an HTTP client sees of one.
    pub(crate) code: String,
}

impl Outcome {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

pub(crate) struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
    connections: JoinSet<()>,
    grpc: InferenceClient<Channel>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, grpc: InferenceClient<Channel>) -> Self {
        Self { address, sender: None, connections: JoinSet::new(), grpc }
    }

    pub(crate) async fn ask(&mut self, plan: &Plan, key: &str) -> Outcome {
        if plan.face == Face::Grpc { self.call(plan, key).await } else { self.post(plan, key).await }
    }

    async fn post(&mut self, plan: &Plan, key: &str) -> Outcome {
        let (path, body) = plan.http();
        let mut request =
            Request::post(path).header("host", "localhost").header("authorization", format!("Bearer {key}"));
        for (name, value) in &plan.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = self.connected().await.send_request(request).await.expect("the router answers");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("an answer has an end").to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        let code = match text.split_once("\"code\":\"") {
            Some((_, rest)) => rest.split('"').next().unwrap_or_default(),
            None if head.status.is_success() && text.contains("event: error") => "error",
            None if head.status.is_success() => "ok",
            // Anthropic's errors have the code in their type alone.
            None => text.split_once("\"type\":\"error\"").map_or("", |_| "error"),
        };
        Outcome { headers: head.headers, code: code.to_owned() }
    }

    async fn connected(&mut self) -> &mut SendRequest<Full<Bytes>> {
        let open = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !open {
            let stream = TcpStream::connect(self.address).await.expect("the router listens");
            let (sender, running) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            self.connections.spawn(async move { drop(running.await) });
            self.sender = Some(sender);
        }
        self.sender.as_mut().unwrap()
    }

    async fn call(&mut self, plan: &Plan, key: &str) -> Outcome {
        let mut request = tonic::Request::new(plan.grpc());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", format!("Bearer {key}").parse().unwrap());
        for (name, value) in plan.headers.iter().filter(|(name, _)| *name != "user-agent") {
            metadata.insert(*name, value.parse().unwrap());
        }
        match self.grpc.generate(request).await {
            Ok(response) => {
                let (metadata, mut pieces, _) = response.into_parts();
                let code = loop {
                    match pieces.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break "ok".to_owned(),
                        Err(_) => break "error".to_owned(),
                    }
                };
                Outcome { headers: metadata.into_headers(), code }
            }
            Err(status) => {
                let code = penstock_proto::ErrorCode::from_status(&status).map_or("error", |(code, _)| code.as_str());
                Outcome { headers: status.metadata().clone().into_headers(), code: code.to_owned() }
            }
        }
    }
}
