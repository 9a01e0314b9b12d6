//! Bytes over HTTP: streamed, resumed where a connection broke, given up where the server's answer is final.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Buf;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use tokio::sync::mpsc;

use super::part::Report;
use super::source::is_loopback;
use super::{Error, Progress};

/// Where sources lead, and how patiently they are asked. `config.rs` fills it from the environment.
#[derive(Debug, Clone)]
pub struct Origins {
    /// Hugging Face or a mirror of it, without a slash at the end.
    pub hub_endpoint: String,
    /// Sent to the hub alone.
    pub hub_token: Option<Token>,
    /// The interpreter whose pip is used.
    pub python: PathBuf,
    /// Attempts without any progress between them.
    pub attempts: u32,
    /// The pause after the first failed attempt; it doubles up to 32 times its length.
    pub backoff: Duration,
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            python: "python3".into(),
            attempts: 6,
            backoff: Duration::from_millis(500),
        }
    }
}

/// A secret that no log shows.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes the secret.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A piece of a file, with the file's whole size where the server told it.
pub(super) struct Piece {
    pub(super) bytes: bytes::Bytes,
    pub(super) total: Option<u64>,
}

/// One file to be had over HTTP.
pub(super) struct Download<'a> {
    client: Client,
    url: String,
    token: Option<&'a Token>,
    origins: &'a Origins,
    received: u64,
    total: Option<u64>,
    tag: Option<String>,
}

/// How an attempt ended that did not bring the whole file.
enum Broken {
    /// The next attempt may do better.
    Again(String),
    /// It will not.
    Final(Error),
}

impl<'a> Download<'a> {
    /// A file at a URL.
    pub(super) fn new(url: String, token: Option<&'a Token>, origins: &'a Origins) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Client { url: url.clone(), reason };
        let parsed = Url::parse(&url).map_err(|error| unusable(error.to_string()))?;
        if !is_safe(&parsed) {
            return Err(unusable("plain http is for loopback only; use https".to_owned()));
        }
        let client = Client::builder()
            .user_agent(concat!("penstock/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .redirect(redirect::Policy::custom(|attempt| match attempt.previous().len() {
                _ if !is_safe(attempt.url()) => attempt.error("redirected to plain http"),
                10.. => attempt.error("too many redirects"),
                _ => attempt.follow(),
            }))
            .build()
            .map_err(|error| unusable(chain(&error)))?;
        Ok(Self { client, url, token, origins, received: 0, total: None, tag: None })
    }

    /// Sends the whole file into `pieces`, in order, or ends early where nobody takes them any more.
    pub(super) async fn run(mut self, pieces: mpsc::Sender<Piece>, report: &Report) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            let before = self.received;
            let reason = match self.attempt(&pieces, report).await {
                Ok(()) => return Ok(()),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Again(reason)) => reason,
            };
            failures = if self.received > before { 1 } else { failures + 1 };
            if failures >= self.origins.attempts {
                return Err(Error::Unreachable { url: self.url, attempts: failures, reason });
            }
            tracing::warn!(url = self.url, attempt = failures, reason, "download interrupted");
            report(Progress::Retrying { attempt: failures, reason });
            tokio::time::sleep(self.origins.backoff * 2u32.pow((failures - 1).min(5))).await;
        }
    }

    async fn attempt(&mut self, pieces: &mpsc::Sender<Piece>, report: &Report) -> Result<(), Broken> {
        let mut response = self.ask().await?;
        let mut skip = self.check(&response)?;
        report(Progress::Started { total: self.total });
        loop {
            let chunk = response.chunk().await.map_err(|error| Broken::Again(chain(&error)))?;
            let Some(mut bytes) = chunk else { break };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            bytes.advance(skipped as usize);
            if bytes.is_empty() {
                continue;
            }
            self.received += bytes.len() as u64;
            if pieces.send(Piece { bytes, total: self.total }).await.is_err() {
                return Ok(());
            }
        }
        match self.total {
            Some(total) if self.received < total => {
                Err(Broken::Again(format!("the connection closed after {} of {total} bytes", self.received)))
            }
            Some(total) if self.received > total => Err(Broken::Final(self.changed())),
            _ => Ok(()),
        }
    }

    async fn ask(&self) -> Result<Response, Broken> {
        let mut request = self.client.get(&self.url).header(ACCEPT_ENCODING, "identity");
        if let Some(Token(secret)) = self.token {
            request = request.bearer_auth(secret);
        }
        if self.received > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.received));
            if let Some(tag) = &self.tag {
                request = request.header(IF_RANGE, tag);
            }
        }
        request.send().await.map_err(|error| match error.is_builder() || error.is_redirect() {
            true => Broken::Final(Error::Client { url: self.url.clone(), reason: chain(&error) }),
            false => Broken::Again(chain(&error)),
        })
    }

    /// Reads the answer's head; returns how many bytes of its body are known already.
    fn check(&mut self, response: &Response) -> Result<u64, Broken> {
        let tag = strong_tag(response.headers());
        match response.status() {
            StatusCode::OK => {
                let total = response.content_length();
                if self.received > 0 && (tag != self.tag || total != self.total) {
                    return Err(Broken::Final(self.changed()));
                }
                (self.tag, self.total) = (tag, total);
                Ok(self.received)
            }
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) = content_range(response.headers()).unwrap_or((0, None));
                if start != self.received || (self.total.is_some() && total.is_some() && total != self.total) {
                    return Err(Broken::Final(self.changed()));
                }
                Ok(0)
            }
            status if status.is_server_error() => Err(Broken::Again(format!("HTTP {}", status.as_u16()))),
            status => {
                let hint = match (status, self.token) {
                    (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => "; a private file needs HF_TOKEN",
                    (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_)) => "; HF_TOKEN has no access to it",
                    (StatusCode::NOT_FOUND, _) => ": no such file there",
                    _ => "",
                };
                Err(Broken::Final(Error::Refused { url: self.url.clone(), status: status.as_u16(), hint }))
            }
        }
    }

    fn changed(&self) -> Error {
        Error::Changed { url: self.url.clone() }
    }
}

/// Whether nobody in between can read or change what comes from there.
fn is_safe(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url.as_str()))
}

/// A tag that promises equal bytes.
fn strong_tag(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get(ETAG)?.to_str().ok()?;
    (!tag.starts_with("W/")).then(|| tag.to_owned())
}

/// Start and whole size from `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// An error with its causes: reqwest's own text leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
