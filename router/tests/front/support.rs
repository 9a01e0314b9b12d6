//! A router, its clients, and workers whose every word comes from the test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use penstock_cluster::MemberEvent;
use penstock_cluster::membership::{Member, MemberState, PROTOCOL, ServedModel};
use penstock_proto::worker::{
    DrainRequest, DrainResponse, FileChunk, FileInfo, FinishReason, Finished, GetLoadRequest, GetModelRequest,
    GetModelResponse, Load, ModelCard, RankedToken, TokenLogprob, Tokens, WatchLoadRequest, Worker,
    WorkerGenerateEvent, WorkerGenerateRequest, WorkerServer, get_model_response, worker_generate_event,
};
use penstock_proto::{ModelName, WorkerName};
use penstock_router::{Config, Connect, ConnectError, Router};
use prometheus::Registry;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::Status;
use tonic::transport::Endpoint;

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

/// A call that a worker has received.
pub(crate) struct Call {
    pub(crate) request: WorkerGenerateRequest,
    events: mpsc::Sender<Result<WorkerGenerateEvent, Status>>,
    said: u64,
}

impl Call {
    /// The prompt as text.
    pub(crate) fn prompt(&self) -> String {
        let bytes = self.request.prompt_ids.iter().filter(|id| **id >= 3).map(|id| (id - 3) as u8).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Sends an event as it stands.
    pub(crate) async fn send(&self, sequence_number: u64, event: Option<worker_generate_event::Event>) {
        self.events.send(Ok(WorkerGenerateEvent { sequence_number, event })).await.unwrap();
    }

    /// Sends tokens where they are due.
    pub(crate) async fn tokens(&mut self, ids: Vec<u32>) {
        let position = self.said;
        self.said += ids.len() as u64;
        self.send(position, Some(worker_generate_event::Event::Tokens(Tokens { ids, logprobs: Vec::new() }))).await;
    }

    /// Says a text whose tokens are all so likely, with as many others beside each as were asked for.
    pub(crate) async fn say_surely(&mut self, text: &str, logprob: f32) {
        let (position, ids) = (self.said, ids(text));
        self.said += ids.len() as u64;
        let top =
            || (0..self.top_logprobs()).map(|id| RankedToken { id: id + 100, logprob: -1.0 - id as f32 }).collect();
        let logprobs = ids.iter().map(|_| TokenLogprob { logprob, top: top() }).collect();
        self.send(position, Some(worker_generate_event::Event::Tokens(Tokens { ids, logprobs }))).await;
    }

    /// How many of the most likely tokens are asked for.
    pub(crate) fn top_logprobs(&self) -> u32 {
        self.request.sampling.as_ref().unwrap().top_logprobs.expect("log-probabilities are asked for")
    }

    /// Says a text.
    pub(crate) async fn say(&mut self, text: &str) {
        self.tokens(ids(text)).await;
    }

    /// What an honest end says.
    pub(crate) fn honest_end(&self) -> Finished {
        Finished {
            reason: FinishReason::Stop.into(),
            prompt_tokens: self.request.prompt_ids.len() as u32,
            output_tokens: self.said as u32,
            cached_tokens: 1,
            ..Finished::default()
        }
    }

    /// Ends the answer.
    pub(crate) async fn finish(self) {
        self.send(self.said, Some(worker_generate_event::Event::Finished(self.honest_end()))).await;
    }

    /// Fails.
    pub(crate) async fn fail(self, status: Status) {
        self.events.send(Err(status)).await.unwrap();
    }

    /// Says text until nobody takes it.
    pub(crate) async fn babble(mut self) {
        loop {
            let ids = ids(&"x".repeat(4000));
            let event = worker_generate_event::Event::Tokens(Tokens { ids, logprobs: Vec::new() });
            let said =
                self.events.send(Ok(WorkerGenerateEvent { sequence_number: self.said, event: Some(event) })).await;
            if said.is_err() {
                return;
            }
            self.said += 4000;
        }
    }

    /// Waits until the router has dropped the stream.
    pub(crate) async fn dropped(&self) {
        self.events.closed().await;
    }
}

struct Fake {
    calls: mpsc::UnboundedSender<Call>,
    refusal: Arc<Mutex<Option<Status>>>,
    digest: String,
    context: u32,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Worker for Fake {
    type GetModelStream = Answers<GetModelResponse>;
    type GenerateStream = Answers<WorkerGenerateEvent>;
    type WatchLoadStream = Answers<Load>;

    async fn get_model(
        &self,
        _: tonic::Request<GetModelRequest>,
    ) -> Result<tonic::Response<Self::GetModelStream>, Status> {
        let files = files();
        let info = |(name, data): (&String, &Vec<u8>)| FileInfo {
            name: name.clone(),
            size: data.len() as u64,
            digest: Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let card = ModelCard {
            name: MODEL.to_owned(),
            digest: self.digest.clone(),
            context_length: self.context,
            vocab_size: VOCABULARY,
            kv_tokens: 2000,
            files: files.iter().map(info).collect(),
            ..ModelCard::default()
        };
        let mut parts = vec![get_model_response::Part::Card(card)];
        for (name, data) in files {
            let (head, tail) = data.split_at(data.len() / 2);
            for data in [head.to_vec(), tail.to_vec()] {
                parts.push(get_model_response::Part::File(FileChunk { name: name.clone(), data }));
            }
        }
        let parts = parts.into_iter().map(|part| Ok(GetModelResponse { part: Some(part) }));
        Ok(tonic::Response::new(stream::iter(parts).boxed()))
    }

    async fn generate(
        &self,
        request: tonic::Request<WorkerGenerateRequest>,
    ) -> Result<tonic::Response<Self::GenerateStream>, Status> {
        if let Some(status) = self.refusal.lock().unwrap().clone() {
            return Err(status);
        }
        let (events, stream) = mpsc::channel(4);
        let _ = self.calls.send(Call { request: request.into_inner(), events, said: 0 });
        Ok(tonic::Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn get_load(&self, _: tonic::Request<GetLoadRequest>) -> Result<tonic::Response<Load>, Status> {
        Err(Status::unimplemented("not asked by routers yet"))
    }

    async fn watch_load(
        &self,
        _: tonic::Request<WatchLoadRequest>,
    ) -> Result<tonic::Response<Self::WatchLoadStream>, Status> {
        Err(Status::unimplemented("not asked by routers yet"))
    }

    async fn drain(&self, _: tonic::Request<DrainRequest>) -> Result<tonic::Response<DrainResponse>, Status> {
        Err(Status::unimplemented("not asked by routers yet"))
    }
}

/// The model's text files: a byte-level tokenizer in which id = byte + 3.
fn files() -> BTreeMap<String, Vec<u8>> {
    let mut vocab = serde_json::Map::new();
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    for (id, token) in specials.iter().enumerate() {
        vocab.insert((*token).to_owned(), json!(id));
    }
    let mut unprintable = 256;
    for byte in 0..=255_u32 {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte
        } else {
            unprintable += 1;
            unprintable - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte + 3));
    }
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": specials.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template =
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}>{% endif %}";
    let file = |name: &str, json: Value| (name.to_owned(), json.to_string().into_bytes());
    BTreeMap::from([
        file("tokenizer.json", tokenizer),
        file("tokenizer_config.json", json!({"chat_template": template, "eos_token": "<|im_end|>"})),
        file("generation_config.json", json!({"temperature": 0.6, "top_k": 20})),
    ])
}

/// A worker as the test sees it.
pub(crate) struct FakeWorker {
    pub(crate) member: Member,
    calls: mpsc::UnboundedReceiver<Call>,
    refusal: Arc<Mutex<Option<Status>>>,
}

impl FakeWorker {
    /// The next call that comes.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Whether a call has come that nobody took.
    pub(crate) fn was_called(&mut self) -> bool {
        self.calls.try_recv().is_ok()
    }

    /// Refuses every call from now on.
    pub(crate) fn refuse(&self, status: Status) {
        *self.refusal.lock().unwrap() = Some(status);
    }
}

/// What a worker is like.
#[derive(Clone)]
pub(crate) struct Traits {
    pub(crate) digest: &'static str,
    pub(crate) context: u32,
}

impl Default for Traits {
    fn default() -> Self {
        Self { digest: "d1", context: CONTEXT }
    }
}

type Pipes = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<std::io::Result<DuplexStream>>>>>;

/// A running router.
pub(crate) struct Front {
    pub(crate) router: Router,
    pub(crate) registry: Registry,
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
        let mut config = Config { http: free, grpc: free, ..Config::default() };
        change(&mut config);
        let pipes = Pipes::default();
        let (members, events) = mpsc::channel(8);
        let registry = Registry::new();
        let router = Router::start(config, ReceiverStream::new(events), connect(&pipes), &registry).await.unwrap();
        Self { router, registry, members, pipes, servers: JoinSet::new() }
    }

    /// A worker joins.
    pub(crate) async fn join(&mut self, name: &str, traits: Traits) -> FakeWorker {
        let (calls, received) = mpsc::unbounded_channel();
        let refusal = Arc::default();
        let Traits { digest, context } = traits;
        let fake = Fake { calls, refusal: Arc::clone(&refusal), digest: digest.to_owned(), context };
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
        FakeWorker { member, calls: received, refusal }
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

    fn keep(self, client: Client) -> Self {
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
