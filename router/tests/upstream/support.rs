//! A stand-in for an upstream that records every byte and sends what the test says, and requests to send to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use penstock_cluster::catalog::{self, Catalog, Name, Source};
use penstock_proto::{DataClass, ModelName, Priority, RequestId, TenantName};
use penstock_router::policy::{self, Authorised, Egress, authorise};
use penstock_router::request::{
    Chat, Delta, Failure, Finish, Input, Message, Request, Role, Sampling, Stop, Tool, ToolCall, ToolChoice, Tools,
};
use penstock_router::upstream::{
    KeySource, OpenAiBound, Protocol, Timeouts, Trust, Upstream, UpstreamAnswer, UpstreamConfig,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

pub(crate) const OPENAI: Protocol = Protocol::OpenAi { bound: OpenAiBound::MaxCompletionTokens };
/// The key of every upstream here.
pub(crate) const KEY: &str = "sk-canary-key";
/// The most tokens of every answer here.
pub(crate) const MAX_TOKENS: u32 = 64;

/// Fails a test that would hang.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// What a connection is made of.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The stand-in.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// A request that has arrived, and the connection it came on.
pub(crate) struct Call {
    /// As it stood on the wire.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    wire: Box<dyn Wire>,
    back: oneshot::Sender<Box<dyn Wire>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, received) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, mut tasks) = (Arc::clone(&connections), JoinSet::new());
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (calls, tls) = (calls.clone(), tls.clone());
                serving.spawn(async move {
                    let wire: Box<dyn Wire> = match tls {
                        None => Box::new(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    serve(wire, &calls).await;
                });
            }
        });
        Self { address, calls: received, connections, _tasks: tasks }
    }

    /// The next request that arrives.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Whether no request is there that nobody took.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads requests as long as the test gives the connection back.
async fn serve(mut wire: Box<dyn Wire>, calls: &mpsc::UnboundedSender<Call>) {
    loop {
        let mut read = Vec::new();
        let head_end = loop {
            if let Some(at) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(wire.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        };
        let head = String::from_utf8(read[..head_end].to_vec()).unwrap();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        while read.len() < head_end + length {
            assert_ne!(wire.read_buf(&mut read).await.unwrap(), 0, "a request is whole");
        }
        assert_eq!(read.len(), head_end + length, "nothing follows a request");
        let (back, returned) = oneshot::channel();
        let _ = calls.send(Call { head, body: read[head_end..].to_vec(), wire, back });
        let Ok(returned) = returned.await else { return };
        wire = returned;
    }
}

impl Call {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Sends bytes as they stand; false once nobody takes them.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        soon(async { self.wire.write_all(bytes.as_ref()).await.is_ok() && self.wire.flush().await.is_ok() }).await
    }

    /// A whole answer; the connection stays open.
    pub(crate) async fn answer(mut self, status: &str, headers: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
        self.write(head + body).await;
        let _ = self.back.send(self.wire);
    }

    /// A whole answer of JSON.
    pub(crate) async fn json_answer(self, body: Value) {
        self.answer("200 OK", "content-type: application/json\r\n", &body.to_string()).await;
    }

    /// The head of a stream.
    pub(crate) async fn open(&mut self) {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(self.write(head).await);
    }

    /// A piece of a stream's body.
    pub(crate) async fn piece(&mut self, bytes: &str) -> bool {
        self.write(format!("{:x}\r\n{bytes}\r\n", bytes.len())).await
    }

    /// An event in OpenAI's manner.
    pub(crate) async fn data(&mut self, data: Value) {
        assert!(self.piece(&format!("data: {data}\n\n")).await);
    }

    /// An event in Anthropic's manner.
    pub(crate) async fn event(&mut self, data: Value) {
        let name = data["type"].as_str().unwrap().to_owned();
        assert!(self.piece(&format!("event: {name}\ndata: {data}\n\n")).await);
    }

    /// The end of a stream; the connection stays open.
    pub(crate) async fn end(mut self) {
        self.write("0\r\n\r\n").await;
        let _ = self.back.send(self.wire);
    }

    /// Waits until the other side has closed the connection.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = soon(self.wire.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "nothing follows a request");
    }
}

/// An upstream whose key lies in a file of its own.
pub(crate) struct Target {
    pub(crate) upstream: Upstream,
    pub(crate) key: TempDir,
}

impl std::ops::Deref for Target {
    type Target = Upstream;
    fn deref(&self) -> &Upstream {
        &self.upstream
    }
}

/// An upstream at that address.
pub(crate) fn target(address: SocketAddr, protocol: Protocol) -> Target {
    target_with(address, protocol, |_| {})
}

/// An upstream with other settings.
pub(crate) fn target_with(address: SocketAddr, protocol: Protocol, change: impl FnOnce(&mut UpstreamConfig)) -> Target {
    let key = tempfile::tempdir().unwrap();
    let path = key.path().join("key");
    std::fs::write(&path, format!("{KEY}\n")).unwrap();
    let mut config = UpstreamConfig {
        name: "acme".to_owned(),
        protocol,
        url: format!("http://{address}/v1"),
        key: Some(KeySource::File(path)),
        proxy: None,
        trust: Trust::System,
        timeouts: Timeouts::default(),
    };
    change(&mut config);
    Target { upstream: Upstream::new(config).unwrap(), key }
}

/// A catalogue of two upstreams that take data of every class.
static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let text = "upstreams:\n\
        - {name: acme, protocol: openai, url: http://localhost, ceiling: restricted}\n\
        - {name: other, protocol: openai, url: http://localhost, ceiling: restricted}\n";
    Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: text.to_owned() }]).unwrap()
});

/// The gate's word that data of a class may go to the model `big` of an upstream.
pub(crate) fn authorised(upstream: &str, class: DataClass) -> Authorised {
    let model = ModelName::new("big").unwrap();
    let name = catalog::Target::Upstream { upstream: Name::new(upstream).unwrap(), model };
    authorise(class, &policy::Target::resolve(&CATALOG, &name, Egress::Allowed)).unwrap()
}

/// The gate's word for the requests of these tests.
pub(crate) static BIG: LazyLock<Authorised> = LazyLock::new(|| authorised("acme", DataClass::Internal));

/// A request whose every field that goes nowhere has a canary in it.
pub(crate) fn request(input: Input) -> Request {
    Request {
        id: RequestId::generate(),
        tenant: TenantName::new("canary-tenant").unwrap(),
        class: DataClass::Internal,
        priority: Priority::Batch,
        deadline: Instant::now() + Duration::from_secs(600),
        model: ModelName::new("canary-route").unwrap(),
        input,
        sampling: Sampling::default(),
        stop: Stop::default(),
        constraint: None,
        tools: Tools::default(),
    }
}

pub(crate) fn chat(messages: Vec<Message>) -> Request {
    request(Input::Chat(Chat { messages, add_generation_prompt: true, template_kwargs: Default::default() }))
}

/// A conversation of one message.
pub(crate) fn hi() -> Request {
    chat(vec![Message::new(Role::User, "hi")])
}

/// A conversation with everything in it that both protocols know.
pub(crate) fn long_chat() -> Request {
    let called =
        |id: &str, arguments: &str| ToolCall { id: id.into(), name: "look".into(), arguments: arguments.into() };
    let result = |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..Message::new(Role::Tool, text) };
    let calls = vec![called("c1", r#"{"at":"sea"}"#), called("c2", "{}")];
    let mut request = chat(vec![
        Message::new(Role::System, "be brief"),
        Message::new(Role::User, "well?"),
        Message { tool_calls: calls, ..Message::new(Role::Assistant, "") },
        result("c1", "blue"),
        result("c2", ""),
        Message::new(Role::User, "and \"now\"?\n银行"),
    ]);
    request.sampling = Sampling { temperature: Some(0.7), top_p: Some(0.9), ..Sampling::default() };
    request.stop.texts = vec!["END".into()];
    let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}});
    let look = Tool {
        name: "look".into(),
        description: Some("looks".into()),
        parameters: parameters.as_object().unwrap().clone(),
        strict: true,
    };
    let wait = Tool { name: "wait".into(), description: None, parameters: Default::default(), strict: false };
    request.tools = Tools { definitions: vec![look, wait], choice: ToolChoice::Named("look".into()), parallel: false };
    request
}

/// An answer read to its end.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) deltas: Vec<Delta>,
    pub(crate) text: String,
    pub(crate) end: Result<Finish, Failure>,
}

/// Reads to the end, after which nothing comes.
pub(crate) async fn read(answer: &mut UpstreamAnswer) -> Read {
    let (mut deltas, mut text) = (Vec::new(), String::new());
    let end = loop {
        match soon(answer.next()).await.expect("an answer ends with a finish or a failure") {
            Ok(delta) => {
                text += &delta.text;
                deltas.push(delta.clone());
                if let Some(finish) = delta.finish {
                    break Ok(finish);
                }
            }
            Err(failure) => break Err(failure),
        }
    };
    assert!(soon(answer.next()).await.is_none());
    Read { deltas, text, end }
}

/// Every header's name and value but those of the transport itself.
pub(crate) fn headers(call: &Call) -> Vec<&str> {
    let ours = |line: &&str| !["host: ", "content-length: "].iter().any(|name| line.starts_with(name));
    let mut lines: Vec<&str> = call.head.lines().skip(1).filter(|line| !line.is_empty()).filter(ours).collect();
    lines.sort_unstable();
    lines
}
