//! Bytes to an upstream and back: its connections, TLS, proxy and key. It knows no protocol's words beyond the names of
//! headers, never follows a redirect, and takes nothing from the environment.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Client, Response, Url};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;
use tokio::time::{Instant, timeout_at};

use super::config::{ConfigError, Protocol, Timeouts, Trust, UpstreamConfig};
use super::fault::Fault;
use super::key::{Keeper, Key};
use crate::policy::Covered;
use crate::replica::Causes;

/// Bytes of a refusal's body that are read.
const REFUSAL_LIMIT: usize = 64 << 10;
/// Bytes of the head of an answer over HTTP/2; HTTP/1 has hyper's own bound of 400 KiB.
const HEAD_LIMIT: u32 = 64 << 10;
/// How long a connection waits for the next request.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Idle connections.
const POOL_SIZE: usize = 64;
/// The version of Anthropic's API that is spoken.
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// One upstream's connections.
pub(super) struct Transport {
    client: Client,
    base: Url,
    headers: HeaderMap,
    protocol: Protocol,
    key: Option<Keeper>,
    timeouts: Timeouts,
}

/// An answer with status 200 whose body is to be read.
pub(super) struct Opened {
    pub(super) response: Response,
    pub(super) framing: Framing,
    /// Until then the first piece of the body must be there.
    pub(super) until: Instant,
    /// What must not be shown of it.
    pub(super) key: Option<Key>,
}

/// How a body comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events.
    Events,
    /// One JSON value.
    Whole,
}

impl Transport {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, ConfigError> {
        let base = url(&config.url, "url")?;
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let encrypted = base.scheme() == "https";
        if !encrypted && !here && config.trust != Trust::Plaintext {
            return Err(ConfigError::Plaintext { host });
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        if config.protocol == Protocol::Anthropic {
            headers.insert(HeaderName::from_static("anthropic-version"), ANTHROPIC_VERSION);
        }
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls(&config.trust, encrypted)?)
            .user_agent(concat!("penstock/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(config.timeouts.connect)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .http2_max_header_list_size(HEAD_LIMIT)
            .tcp_nodelay(true)
            .no_proxy();
        if let Some(proxy) = &config.proxy {
            let proxy = url(proxy, "proxy")?;
            client = client.proxy(reqwest::Proxy::all(proxy).map_err(|_| ConfigError::Url { field: "proxy" })?);
        }
        let client = client.build().map_err(|error| ConfigError::Client { reason: Causes(&error).to_string() })?;
        let key = config.key.clone().map(Keeper::new).transpose()?;
        Ok(Self { client, base, headers, protocol: config.protocol, key, timeouts: config.timeouts })
    }

    /// Sends a body and waits for the head of the answer, which must be a success. The only place that writes to an
    /// upstream: the gate must have covered the call.
    pub(super) async fn send(&self, _: &Covered, path: &str, body: bytes::Bytes) -> Result<Opened, Fault> {
        let key = match &self.key {
            Some(keeper) => Some(keeper.key().await.inspect_err(|error| tracing::error!(%error, "no key"))?),
            None => None,
        };
        let mut headers = self.headers.clone();
        if let Some(key) = &key {
            let (name, value) = credential(self.protocol, key);
            headers.insert(name, value);
        }
        let until = Instant::now() + self.timeouts.first_byte;
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let sent = self.client.post(url).headers(headers).body(body).send();
        let response = timeout_at(until, sent).await.map_err(|_| Fault::Silent)?.map_err(|error| broken(&error))?;
        if response.status() == StatusCode::OK {
            let framing = framing(response.headers())?;
            return Ok(Opened { response, framing, until, key });
        }
        Err(refusal(response, until, key.as_ref()).await)
    }
}

fn credential(protocol: Protocol, key: &Key) -> (HeaderName, HeaderValue) {
    let (name, value) = match protocol {
        Protocol::OpenAi { .. } => (header::AUTHORIZATION, format!("Bearer {}", key.expose())),
        Protocol::Anthropic => (HeaderName::from_static("x-api-key"), key.expose().to_owned()),
    };
    let mut value = HeaderValue::try_from(value).expect("a key is visible ASCII");
    value.set_sensitive(true);
    (name, value)
}

/// What the head of an answer says of its body. Headers of other names, `x-penstock-…` among them, say nothing.
fn framing(headers: &HeaderMap) -> Result<Framing, Fault> {
    let word = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    if !matches!(word(header::CONTENT_ENCODING).as_str(), "" | "identity") {
        return Err(Fault::Invalid("it is compressed, which was not asked for"));
    }
    match word(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim() {
        "text/event-stream" => Ok(Framing::Events),
        "application/json" => Ok(Framing::Whole),
        _ => Err(Fault::Invalid("its content type is neither text/event-stream nor application/json")),
    }
}

/// Reads as much of a refusal as is worth it.
async fn refusal(mut response: Response, until: Instant, key: Option<&Key>) -> Fault {
    let mut body = Vec::new();
    // What cannot be read is not needed: the status says the most.
    while let Ok(Ok(Some(piece))) = timeout_at(until, response.chunk()).await {
        body.extend_from_slice(&piece);
        if body.len() >= REFUSAL_LIMIT {
            break;
        }
    }
    Fault::refused(response.status(), response.headers(), &body, key)
}

/// What an error of the client means before the answer's head is there.
fn broken(error: &reqwest::Error) -> Fault {
    tracing::warn!(reason = %Causes(error), "upstream call failed");
    if error.is_connect() { Fault::Unreachable } else { Fault::Lost }
}

fn url(text: &str, field: &'static str) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|_| ConfigError::Url { field })?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let fits = matches!(url.scheme(), "http" | "https") && url.has_host() && plain && url.fragment().is_none();
    if fits { Ok(url) } else { Err(ConfigError::Url { field }) }
}

/// What a client trusts, without or with TLS.
pub(crate) fn tls(trust: &Trust, encrypted: bool) -> Result<ClientConfig, ConfigError> {
    let failed = |error: rustls::Error| ConfigError::Client { reason: error.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    if !encrypted {
        return Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth());
    }
    let verifier = match trust {
        Trust::System | Trust::Plaintext => Verifier::new(provider).map_err(failed)?,
        Trust::And(path) => {
            let extra = authorities(path)?;
            let unusable =
                |error: rustls::Error| ConfigError::Authorities { path: path.clone(), reason: error.to_string() };
            Verifier::new_with_extra_roots(extra, provider).map_err(unusable)?
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let unusable = |reason: String| ConfigError::Authorities { path: path.to_owned(), reason };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = read.map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() { Err(unusable("there are none".to_owned())) } else { Ok(certificates) }
}
