//! External upstreams: a [`Request`] goes out in a provider's words, its answer comes back as deltas. Bodies are
//! rebuilt from the typed request alone; nothing that a client wrote beside it can leave. Whether an upstream may be
//! called at all is policy's to say, before anything here is asked.

mod answer;
mod anthropic;
mod breaker;
mod config;
mod express;
mod fault;
mod key;
mod openai;
mod reader;
mod sse;
mod transport;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use penstock_cluster::catalog::Target;
use penstock_proto::{DataClass, ErrorCode};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout_at};

use crate::policy::{Authorised, Covered};
use crate::request::{Failure, Request, Usage};

pub use answer::{UpstreamAnswer, UsageSource};
pub use breaker::BreakerState;
pub use config::{ConfigError, OpenAiBound, Protocol, Timeouts, Trust, UpstreamConfig};
pub use key::{KeyError, KeySource};

pub(crate) use transport::tls;

use answer::Reading;
use breaker::{Breaker, Outcome, Ticket};
use fault::Fault;
use reader::Reader;
use transport::Transport;

/// Calls of one request, before its first piece.
const ATTEMPTS: u32 = 3;
/// Tokens that a message may take beside its text, for the bound of a prompt.
const MESSAGE_TOKENS: usize = 16;

/// One external upstream: its connections and its breaker.
pub struct Upstream {
    name: Arc<str>,
    protocol: Protocol,
    timeouts: Timeouts,
    pass: Vec<String>,
    transport: Transport,
    breaker: Arc<Mutex<Breaker>>,
}

/// A request in the words of an upstream, ready to be sent to it.
pub struct Prepared {
    class: DataClass,
    path: &'static str,
    body: Bytes,
    reader: Reader,
    bound: Usage,
    deadline: Instant,
}

impl Prepared {
    fn new(path: &'static str, body: Bytes, reader: Reader, (request, max_tokens): (&Request, u32)) -> Self {
        use crate::request::Input;
        let messages = match &request.input {
            Input::Chat(chat) => chat.messages.len(),
            Input::Text(_) | Input::Tokens(_) => 1,
        };
        let prompt_tokens = u32::try_from(body.len() + MESSAGE_TOKENS * messages).unwrap_or(u32::MAX);
        let bound = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: max_tokens };
        Self { class: request.class, path, body, reader, bound, deadline: request.deadline }
    }

    /// The same with further fields. What the typed request says stands.
    fn with(self, fields: Vec<(&String, &Value)>) -> Self {
        if fields.is_empty() {
            return self;
        }
        let mut body: Map<String, Value> =
            serde_json::from_slice(&self.body).expect("a body is an object that we wrote");
        for (name, value) in fields {
            body.entry(name).or_insert_with(|| value.clone());
        }
        let body = Bytes::from(serde_json::to_vec(&body).expect("an object of strings, numbers and objects is JSON"));
        let more = u32::try_from(body.len() - self.body.len()).unwrap_or(u32::MAX);
        let bound = Usage { prompt_tokens: self.bound.prompt_tokens.saturating_add(more), ..self.bound };
        Self { body, bound, ..self }
    }

    /// The bytes that go out as the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// What the call can cost at most, in tokens: a token is at least a byte of the body, and the answer is bounded.
    pub fn bound(&self) -> Usage {
        self.bound
    }
}

impl Upstream {
    /// Checks the settings, reads the key and the authorities, and calls nobody.
    pub fn new(config: UpstreamConfig) -> Result<Self, ConfigError> {
        let transport = Transport::new(&config)?;
        let UpstreamConfig { name, protocol, timeouts, pass, .. } = config;
        let breaker = Arc::new(Mutex::new(Breaker::new()));
        Ok(Self { name: name.into(), protocol, timeouts, pass, transport, breaker })
    }

    /// Puts a request into the upstream's words. What they have no word for is refused by the name of its field.
    pub fn prepare(&self, model: &str, request: &Request, max_tokens: u32) -> Result<Prepared, Failure> {
        let prepared = match self.protocol {
            Protocol::OpenAi { bound } => openai::prepare(model, request, (max_tokens, bound)),
            Protocol::Anthropic => anthropic::prepare(model, request, max_tokens),
        }?;
        let passed = request.unknown.iter().filter(|(name, _)| self.pass.contains(name));
        Ok(prepared.with(passed.collect()))
    }

    /// Calls the upstream and waits for the first piece of its answer: what fails before it is a refusal, and another
    /// target may be tried. Where that is safe, the same call is made again.
    ///
    /// `to` is the gate's word that data of this class may go to this upstream.
    pub async fn send(&self, to: &Authorised, prepared: &Prepared) -> Result<UpstreamAnswer, Failure> {
        let covered = to.covers(
            prepared.class,
            |place| matches!(place, Target::Upstream { upstream, .. } if upstream.as_str() == &*self.name),
        )?;
        let mut called = self.admit()?;
        let mut attempt = 1;
        loop {
            let fault = match self.attempt(&covered, prepared, called).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            tracing::debug!(upstream = %self.name, attempt, %fault, "call failed");
            let left = prepared.deadline.saturating_duration_since(Instant::now());
            let pause = fault.again(attempt).filter(|pause| *pause < left && *pause <= self.timeouts.retry);
            match pause {
                Some(pause) if attempt < ATTEMPTS => sleep(pause).await,
                Some(_) | None => return Err(fault.failure(&self.name)),
            }
            called = self.admit().map_err(|_| fault.failure(&self.name))?;
            attempt += 1;
        }
    }

    /// Prepares and sends.
    pub async fn generate(
        &self,
        to: &Authorised,
        request: &Request,
        max_tokens: u32,
    ) -> Result<UpstreamAnswer, Failure> {
        self.send(to, &self.prepare(to.target().model(), request, max_tokens)?).await
    }

    /// Whether it is called, or rests.
    pub fn state(&self) -> BreakerState {
        lock(&self.breaker).state(Instant::now())
    }

    fn admit(&self) -> Result<Attempt, Failure> {
        match lock(&self.breaker).admit(Instant::now()) {
            Ok(ticket) => Ok(Attempt { breaker: Arc::clone(&self.breaker), ticket, settled: false }),
            Err(rest) => {
                let message = format!("upstream {} has failed too often and is not called for now", self.name);
                let retry_after = u32::try_from(rest.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                let failure = Failure::new(ErrorCode::ProviderUnavailable, message);
                Err(Failure { retry_after: Some(retry_after), ..failure })
            }
        }
    }

    async fn attempt(
        &self,
        covered: &Covered,
        prepared: &Prepared,
        mut called: Attempt,
    ) -> Result<UpstreamAnswer, Fault> {
        let sent = self.transport.send(covered, prepared.path, prepared.body.clone());
        let opened = timeout_at(prepared.deadline, sent).await.unwrap_or(Err(Fault::Deadline));
        match opened {
            Ok(opened) => {
                let reading = Reading::new(opened, self.timeouts.idle, prepared, called);
                UpstreamAnswer::begin(reading, Arc::clone(&self.name)).await
            }
            Err(fault) => {
                called.settle(fault.outcome());
                Err(fault)
            }
        }
    }
}

/// A call that the breaker waits to hear of; one that is dropped before says nothing.
struct Attempt {
    breaker: Arc<Mutex<Breaker>>,
    ticket: Ticket,
    settled: bool,
}

impl Attempt {
    /// Tells the breaker how it went; again, where an answer that began well breaks off.
    fn settle(&mut self, outcome: Outcome) {
        self.settled = true;
        lock(&self.breaker).settle(self.ticket, outcome, Instant::now());
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Outcome::Neutral);
        }
    }
}

fn lock(breaker: &Mutex<Breaker>) -> std::sync::MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}
