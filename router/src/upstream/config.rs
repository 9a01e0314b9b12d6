//! What a catalogue says of an upstream, and what of it cannot be.

use std::path::PathBuf;
use std::time::Duration;

use super::key::{KeyError, KeySource};

/// Settings of one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// What the catalogue calls it.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Its base: `https://api.acme.example/v1`. What is called follows it: `/chat/completions`, `/messages`.
    pub url: String,
    /// None for one that asks for none.
    pub key: Option<KeySource>,
    /// An HTTP proxy that it is called through. The environment's proxies are never used.
    pub proxy: Option<String>,
    /// Who may vouch for it.
    pub trust: Trust,
    /// How long it may be silent.
    pub timeouts: Timeouts,
    /// Fields that no face knows, and that it may be sent.
    pub pass: Vec<String>,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// OpenAI's chat completions and completions.
    OpenAi {
        /// The name by which chat completions know the bound of the answer.
        bound: OpenAiBound,
    },
    /// Anthropic's messages.
    Anthropic,
}

/// The field for the most tokens of a chat completion: OpenAI takes only the newer, many others only the older one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OpenAiBound {
    /// `max_completion_tokens`.
    #[default]
    MaxCompletionTokens,
    /// `max_tokens`.
    MaxTokens,
}

/// Who may vouch for an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// The authorities that the system trusts. Without TLS only an upstream on this machine is called.
    #[default]
    System,
    /// Those, and the ones in a PEM file.
    And(PathBuf),
    /// An upstream without TLS, anywhere.
    Plaintext,
}

/// How long an upstream may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// From the request to the first byte of the answer's body.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// The longest wait, as its `retry-after` asks for, before a call is made again rather than given up.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            retry: Duration::from_secs(5),
        }
    }
}

/// Why an upstream cannot be used as the catalogue describes it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a URL that can be called.
    #[error("{field} must be an http or https URL with a host, without user, query and fragment")]
    Url {
        /// `url` or `proxy`.
        field: &'static str,
    },
    /// The prompt would cross a network in the clear.
    #[error("url must begin with https, since {host} is not this machine")]
    Plaintext {
        /// The URL's.
        host: String,
    },
    /// There is no key.
    #[error("key: {0}")]
    Key(#[from] KeyError),
    /// The authorities cannot be read.
    #[error("the authorities in {} cannot be used: {reason}", path.display())]
    Authorities {
        /// The file's path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS or the client cannot be set up.
    #[error("the client cannot be set up: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
}
