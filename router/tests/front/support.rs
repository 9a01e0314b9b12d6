//! A router, its clients, and workers whose every word comes from the test.

mod model;
mod outside;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use penstock_cluster::catalog::{self, Catalog, Source};
use penstock_cluster::membership::{Member, MemberState, PROTOCOL, ServedModel};
use penstock_cluster::store::MemoryStore;
use penstock_cluster::{MemberEvent, Store};
use penstock_proto::worker::WorkerServer;
use penstock_proto::{ModelName, WorkerName};
use penstock_router::{AdminKey, Cluster, Config, Connect, ConnectError, Router};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Endpoint;

pub(crate) use outside::Outside;
use worker::Fake;
pub(crate) use worker::{Call, FakeWorker, LOAD, Traits};

/// The model that the workers serve.
pub(crate) const MODEL: &str = "parrot";
/// Tokens that a prompt and an answer may have.
pub(crate) const CONTEXT: u32 = 500;
/// Three special tokens and one for every byte.
pub(crate) const VOCABULARY: u32 = 259;

/// The ids that spell a text: a byte each.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) + 3).collect()
}

type Pipes = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<std::io::Result<DuplexStream>>>>>;

/// A running router.
pub(crate) struct Front {
    pub(crate) router: Router,
    pub(crate) registry: Registry,
    pub(crate) key: AdminKey,
    pub(crate) store: Arc<dyn Store>,
    members: mpsc::Sender<MemberEvent>,
    pipes: Pipes,
    servers: JoinSet<()>,
}

impl Front {
    /// A router with one worker.
    pub(crate) async fn with_worker() -> (Self, FakeWorker) {
        Self::with(|_| {}, Traits::default()).await
    }

    /// A router with other settings, and one worker.
    pub(crate) async fn with(change: impl FnOnce(&mut Config), traits: Traits) -> (Self, FakeWorker) {
        let mut front = Self::start(change).await;
        let worker = front.join("w1", traits).await;
        soon(front.router.status().ready()).await;
        (front, worker)
    }

    /// A router without workers.
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config { http: free, grpc: free, admin: free, ..Config::default() };
        change(&mut config);
        let pipes = Pipes::default();
        let (members, events) = mpsc::channel(8);
        let registry = Registry::new();
        let dir = tempfile::tempdir().unwrap();
        let key = AdminKey::read_or_create(&dir.path().join("admin.key")).unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let members_told = ReceiverStream::new(events).boxed();
        let cluster = Cluster {
            store: Arc::clone(&store),
            members: members_told,
            staleness: Arc::new(|| Duration::from_secs(1)),
            connect: connect(&pipes),
        };
        let router = Router::start(config, key.clone(), cluster, &registry).await.unwrap();
        Self { router, registry, key, store, members, pipes, servers: JoinSet::new() }
    }

    /// Applies a catalogue and waits until it is in force.
    pub(crate) async fn apply(&self, text: &str) {
        let source = Source { file: "bank.yaml".to_owned(), text: text.to_owned() };
        let catalog = Catalog::read(vec![source]).unwrap();
        let number = catalog::apply(&*self.store, &catalog, "test").await.unwrap();
        self.metric(&format!("penstock_catalog_version {number}")).await;
    }

    /// A worker joins.
    pub(crate) async fn join(&mut self, name: &str, traits: Traits) -> FakeWorker {
        let (calls, received) = mpsc::unbounded_channel();
        let (drains, drained) = mpsc::unbounded_channel();
        let refusal = Arc::default();
        let Traits { digest, context } = traits;
        let fake = Fake { calls, drains, refusal: Arc::clone(&refusal), digest: digest.to_owned(), context };
        let (pipe, incoming) = mpsc::unbounded_channel();
        self.pipes.lock().unwrap().insert(format!("inprocess:{name}"), pipe);
        self.servers.spawn(async move {
            let incoming = UnboundedReceiverStream::new(incoming);
            tonic::transport::Server::builder()
                .add_service(WorkerServer::new(fake))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        let member = Member {
            name: WorkerName::new(name).unwrap(),
            endpoint: format!("inprocess:{name}"),
            models: vec![ServedModel { name: ModelName::new(MODEL).unwrap(), digest: digest.to_owned() }],
            state: MemberState::Ready,
            protocol: PROTOCOL,
            epoch: Default::default(),
        };
        self.tell(MemberEvent::Joined(member.clone())).await;
        FakeWorker { member, calls: received, drains: drained, refusal }
    }

    /// Tells the router of a member.
    pub(crate) async fn tell(&self, event: MemberEvent) {
        self.members.send(event).await.unwrap();
    }

    /// Waits until a line stands among the metrics.
    pub(crate) async fn metric(&self, line: &str) {
        let stands =
            || penstock_router::render(std::slice::from_ref(&self.registry)).lines().any(|other| other == line);
        soon(async {
            while !stands() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.router.http_addr()
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address()).await
    }

    /// Asks on a connection of its own.
    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> Answer {
        let mut client = self.client().await;
        let answer = client.post(path, body).await;
        answer.keep(client)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let mut client = self.client().await;
        let answer = client.ask(Method::GET, path, &[], "").await;
        answer.keep(client)
    }
}

fn connect(pipes: &Pipes) -> Connect {
    let pipes = Arc::clone(pipes);
    Arc::new(move |endpoint| {
        let pipe = pipes.lock().unwrap().get(endpoint).cloned();
        let gone = || ConnectError { endpoint: endpoint.to_owned(), reason: "nobody is there".to_owned() };
        let pipe = pipe.ok_or_else(gone)?;
        let connector = tower::service_fn(move |_: http::Uri| {
            let (near, far) = tokio::io::duplex(64 << 10);
            let sent = pipe.send(Ok(far)).map_err(|_| std::io::Error::other("the worker is gone"));
            std::future::ready(sent.map(|()| TokioIo::new(near)))
        });
        Ok(Endpoint::from_static("http://in.process").connect_with_connector_lazy(connector))
    })
}

/// Fails a test that would hang.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// A connection to the router.
pub(crate) struct Client {
    sender: Sender,
    connection: JoinSet<()>,
}

enum Sender {
    One(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Two(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, running) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(async move { drop(running.await) });
        Self { sender: Sender::One(sender), connection }
    }

    /// HTTP/2 without asking first. `window` bytes of an answer may wait to be read.
    pub(crate) async fn connect_http2(address: SocketAddr, window: u32) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
        let (sender, running) = builder.handshake(stream).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(async move { drop(running.await) });
        Self { sender: Sender::Two(sender), connection }
    }

    pub(crate) async fn post(&mut self, path: &str, body: impl ToString) -> Answer {
        self.ask(Method::POST, path, &[], body).await
    }

    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ToString,
    ) -> Answer {
        soon(self.try_ask(method, path, headers, body)).await.unwrap()
    }

    pub(crate) async fn try_ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ToString,
    ) -> hyper::Result<Answer> {
        let uri = match self.sender {
            Sender::One(_) => path.to_owned(),
            Sender::Two(_) => format!("http://localhost{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self.sender, Sender::One(_)) && !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let response = match &mut self.sender {
            Sender::One(sender) => sender.send_request(request).await?,
            Sender::Two(sender) => sender.send_request(request).await?,
        };
        Ok(Answer::new(response))
    }

    /// Closes the connection.
    pub(crate) async fn leave(mut self) {
        self.connection.shutdown().await;
    }
}

/// An answer whose head is there.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    read: String,
    /// The connection, kept open, where it is the answer's own.
    _client: Option<Client>,
}

impl Answer {
    fn new(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status.as_u16(), headers: head.headers, body, read: String::new(), _client: None }
    }

    pub(crate) fn keep(self, client: Client) -> Self {
        Self { _client: Some(client), ..self }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub(crate) async fn text(self) -> String {
        let rest = soon(self.body.collect()).await.unwrap().to_bytes();
        self.read + std::str::from_utf8(&rest).unwrap()
    }

    pub(crate) async fn json(self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The next event of a stream; None at its end.
    pub(crate) async fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let event = event.to_owned();
                self.read = rest.to_owned();
                return Some(event);
            }
            let frame = soon(self.body.frame()).await?.unwrap();
            self.read += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    }

    /// The next chunk of a stream.
    pub(crate) async fn chunk(&mut self) -> Value {
        let event = self.event().await.unwrap();
        serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()
    }

    /// Every chunk to the end, which must be `[DONE]`.
    pub(crate) async fn chunks(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            let event = self.event().await.expect("a stream ends with [DONE]");
            let data = event.strip_prefix("data: ").unwrap();
            if data == "[DONE]" {
                assert_eq!(self.event().await, None);
                return chunks;
            }
            chunks.push(serde_json::from_str(data).unwrap());
        }
    }
}

/// A conversation of one message.
pub(crate) fn chat(change: Value) -> Value {
    with(json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), change)
}

/// A text completion.
pub(crate) fn completion(change: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "hi"}), change)
}

fn with(mut body: Value, change: Value) -> Value {
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
