//! The catalogue in force, made ready to be asked: keys by their digests, detectors compiled, upstreams with their
//! connections. A new version takes the place of the old one as a whole; what was begun under one ends under it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use penstock_cluster::catalog::{self, Applied, At, Catalog, Catalogs, MaxTokensField, Name, Number, Span};
use penstock_proto::ErrorCode;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::class::{self, Detectors};
use crate::config::{Config, Secrets};
use crate::filter;
use crate::metrics::Metrics;
use crate::policy::Asked;
use crate::request::Failure;
use crate::tenant::{Issuers, Keys};
use crate::upstream::{
    BreakerState, ConfigError, KeySource, OpenAiBound, Protocol, Timeouts, Trust, Upstream, UpstreamConfig,
};

/// How long the start waits for the catalogue.
const FIRST_READ: Duration = Duration::from_secs(2);

/// What is in force where nothing was ever applied.
static EMPTY: LazyLock<Catalog> = LazyLock::new(Catalog::default);

/// One version of the catalogue, ready to be asked.
pub(crate) struct Rulebook {
    applied: Option<Arc<Applied>>,
    parts: Parts,
}

/// What is made of a catalogue.
pub(crate) struct Parts {
    keys: Keys,
    issuers: Issuers,
    detectors: Result<Detectors, class::Error>,
    /// Of the routes that have one.
    filters: BTreeMap<Name, Result<Arc<filter::Rules>, class::Error>>,
    upstreams: BTreeMap<Name, Result<Outside, Unusable>>,
}

/// An upstream with what it was made of, so that the next version can go on with it.
#[derive(Clone)]
struct Outside {
    config: UpstreamConfig,
    upstream: Arc<Upstream>,
}

/// Why an upstream of the catalogue cannot be called by this router.
#[derive(Debug, thiserror::Error)]
#[error("{at}: upstream {name}: {reason}")]
pub(crate) struct Unusable {
    at: At,
    name: Name,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "{what} may not be read: name it in a catalogue that the router is started with, in --secret-env, or put it into --secrets-dir"
    )]
    Forbidden { what: String },
}

impl Parts {
    /// Makes what a catalogue describes. Upstreams that are as they were `before` keep their connections and breakers.
    pub(crate) fn compile(catalog: &Catalog, secrets: &Secrets, before: Option<&Self>) -> Self {
        let read = |path: &std::path::Path| {
            if secrets.may_open(path) {
                std::fs::read_to_string(path)
            } else {
                Err(io::Error::other("it may not be read: put it into --secrets-dir"))
            }
        };
        let upstream = |(name, upstream): (&Name, &catalog::Placed<catalog::Upstream>)| {
            let unusable = |reason| Unusable { at: upstream.at.clone(), name: name.clone(), reason };
            let outside = outside(upstream, secrets, before).map_err(unusable);
            (name.clone(), outside)
        };
        let filters = catalog.routes.iter().filter_map(|(name, route)| {
            let rules = filter::Rules::compile(catalog, route.filter.as_ref()?, read).map(Arc::new);
            Some((name.clone(), rules))
        });
        Self {
            keys: Keys::new(catalog),
            issuers: match before {
                Some(before) => before.issuers.renew(catalog),
                None => Issuers::new(catalog, &TaskTracker::new()),
            },
            detectors: Detectors::compile(catalog, read),
            filters: filters.collect(),
            upstreams: catalog.upstreams.iter().map(upstream).collect(),
        }
    }

    /// What of it this router cannot use.
    pub(crate) fn faults(&self) -> Vec<String> {
        let detectors = self.detectors.as_ref().err().map(ToString::to_string);
        let upstreams = self.upstreams.values().filter_map(|upstream| upstream.as_ref().err());
        let filters = self.filters.values().filter_map(|filter| filter.as_ref().err()).map(ToString::to_string);
        detectors.into_iter().chain(filters).chain(upstreams.map(ToString::to_string)).collect()
    }
}

fn outside(upstream: &catalog::Upstream, secrets: &Secrets, before: Option<&Parts>) -> Result<Outside, Reason> {
    let config = config(upstream, secrets)?;
    let known = before.and_then(|before| before.upstreams.get(&upstream.name)?.as_ref().ok());
    match known {
        Some(known) if known.config == config => Ok(known.clone()),
        Some(_) | None => {
            let upstream = Arc::new(Upstream::new(config.clone())?);
            Ok(Outside { config, upstream })
        }
    }
}

fn config(upstream: &catalog::Upstream, secrets: &Secrets) -> Result<UpstreamConfig, Reason> {
    let forbidden = |what: String| Reason::Forbidden { what };
    let key = match &upstream.key {
        Some(source) if !secrets.may_read(source) => {
            return Err(forbidden(match source {
                catalog::KeySource::Env(name) => format!("the variable {name}"),
                catalog::KeySource::File(path) => path.display().to_string(),
            }));
        }
        Some(catalog::KeySource::Env(name)) => Some(KeySource::Env(name.clone())),
        Some(catalog::KeySource::File(path)) => Some(KeySource::File(path.clone())),
        None => None,
    };
    let trust = match &upstream.ca {
        _ if upstream.insecure => Trust::Plaintext,
        Some(path) if !secrets.may_open(path) => return Err(forbidden(path.display().to_string())),
        Some(path) => Trust::And(PathBuf::clone(path)),
        None => Trust::System,
    };
    let bound = match upstream.max_tokens_field {
        MaxTokensField::MaxCompletionTokens => OpenAiBound::MaxCompletionTokens,
        MaxTokensField::MaxTokens => OpenAiBound::MaxTokens,
    };
    let protocol = match upstream.protocol {
        catalog::Protocol::Openai => Protocol::OpenAi { bound },
        catalog::Protocol::Anthropic => Protocol::Anthropic,
    };
    let default = Timeouts::default();
    let or = |span: &Option<Span>, default| span.as_ref().map_or(default, Span::get);
    let timeouts = Timeouts {
        connect: or(&upstream.timeouts.connect, default.connect),
        first_byte: or(&upstream.timeouts.first_byte, default.first_byte),
        idle: or(&upstream.timeouts.idle, default.idle),
        ..default
    };
    let (name, url, proxy) = (upstream.name.to_string(), upstream.url.value.clone(), upstream.proxy.clone());
    Ok(UpstreamConfig { name, protocol, url, key, proxy, trust, timeouts, pass: upstream.pass.clone() })
}

impl Rulebook {
    /// Where nothing was ever applied.
    pub(crate) fn empty() -> Self {
        Self { applied: None, parts: Parts::compile(&EMPTY, &Secrets::default(), None) }
    }

    /// A version, made ready. What of it cannot be used here stays unused, and says so when it is asked for.
    pub(crate) fn compile(applied: Arc<Applied>, secrets: &Secrets, before: &Self) -> Self {
        let parts = Parts::compile(&applied.catalog, secrets, Some(&before.parts));
        Self { applied: Some(applied), parts }
    }

    /// Which version it is; None where nothing was ever applied.
    pub(crate) fn version(&self) -> Option<Number> {
        self.applied.as_ref().map(|applied| applied.number)
    }

    /// When it was applied, in seconds since 1970.
    pub(crate) fn since(&self) -> u64 {
        self.applied.as_ref().map_or(0, |applied| applied.origin.at.as_secs())
    }

    /// What it says.
    pub(crate) fn catalog(&self) -> &Catalog {
        self.applied.as_ref().map_or(&EMPTY, |applied| &applied.catalog)
    }

    /// Whether nobody has to prove who asks.
    pub(crate) fn is_keyless(&self) -> bool {
        self.catalog().tenants.is_empty()
    }

    /// Whose keys are whose.
    pub(crate) fn keys(&self) -> &Keys {
        &self.parts.keys
    }

    /// Whose signed tokens stand for tenants.
    pub(crate) fn issuers(&self) -> &Issuers {
        &self.parts.issuers
    }

    /// What looks through requests. Where that cannot be made, nothing may pass unseen.
    pub(crate) fn detectors(&self) -> Result<&Detectors, Failure> {
        self.parts.detectors.as_ref().map_err(|error| {
            tracing::error!(%error, "requests are refused: the catalogue's detectors cannot be used");
            Failure::new(ErrorCode::Detectors, "the detectors cannot be used; the router's log says why")
        })
    }

    /// The filter of what was asked for: routes may have one.
    pub(crate) fn filter(&self, asked: &Asked) -> Result<Option<&Arc<filter::Rules>>, Failure> {
        let Asked::Route(route) = asked else { return Ok(None) };
        self.parts.filters.get(route).map(Result::as_ref).transpose().map_err(|error| {
            tracing::error!(%error, %route, "requests are refused: the route's filter cannot be used");
            Failure::new(ErrorCode::Detectors, "the route's filter cannot be used; the router's log says why")
        })
    }

    /// An upstream, ready to be called.
    pub(crate) fn upstream(&self, name: &Name) -> Result<&Arc<Upstream>, Failure> {
        match self.parts.upstreams.get(name) {
            Some(Ok(outside)) => Ok(&outside.upstream),
            Some(Err(_)) | None => {
                let message = format!("upstream {name} cannot be called by this router; its log says why");
                Err(Failure::new(ErrorCode::ProviderUnavailable, message))
            }
        }
    }

    /// The upstreams that are not to be called now: those that rest, and those that cannot be called at all.
    pub(crate) fn broken(&self) -> Vec<Name> {
        let is_broken = |outside: &Result<Outside, Unusable>| {
            outside.as_ref().map_or(true, |outside| outside.upstream.state() == BreakerState::Open)
        };
        self.parts.upstreams.iter().filter(|(_, outside)| is_broken(outside)).map(|(name, _)| name.clone()).collect()
    }
}

/// The handle to what is in force.
#[derive(Clone)]
pub(crate) struct Rulebooks {
    newest: watch::Receiver<Arc<Rulebook>>,
    catalogs: Catalogs,
    max_stale: Duration,
}

impl Rulebooks {
    /// What is in force now, where that is known well enough: a router that has not read the catalogue, or has lost
    /// touch for too long, does not know who may do what.
    pub(crate) fn current(&self) -> Result<Arc<Rulebook>, Failure> {
        let book = Arc::clone(&self.newest.borrow());
        match self.catalogs.staleness() {
            None => Err(Failure::new(ErrorCode::StaleState, "the router has not read the catalogue yet")),
            Some(age) if age > self.max_stale && !book.is_keyless() => {
                let message = format!("the router last read the catalogue {} s ago", age.as_secs());
                Err(Failure::new(ErrorCode::StaleState, message))
            }
            Some(_) => Ok(book),
        }
    }

    /// Waits until a version, or a later one, is in force.
    pub(crate) async fn reach(&self, version: Number) {
        let mut newest = self.newest.clone();
        if newest.wait_for(|book| book.version() >= Some(version)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the catalogue has been read.
    pub(crate) fn synced(&self) -> bool {
        self.catalogs.staleness().is_some()
    }
}

/// Makes each version ready as it comes, and puts it in force. What is known already is in force when this returns,
/// which is soon, whether or not the store answers.
pub(crate) async fn follow(
    mut catalogs: Catalogs,
    config: &Config,
    metrics: Arc<Metrics>,
    tasks: &TaskTracker,
) -> Rulebooks {
    let (publish, newest) = watch::channel(Arc::new(Rulebook::empty()));
    let (secrets, handle) = (config.secrets.clone(), catalogs.clone());
    if timeout(FIRST_READ, catalogs.synced()).await.is_err() {
        tracing::warn!("the store does not answer; requests are refused until the catalogue has been read");
    }
    if let Some(first) = catalogs.newest() {
        enforce(&publish, first, &secrets, &metrics).await;
    }
    tasks.spawn(async move {
        loop {
            let applied = tokio::select! {
                applied = catalogs.next() => applied,
                () = publish.closed() => return,
            };
            let known = publish.borrow().version();
            if known != Some(applied.number) {
                enforce(&publish, applied, &secrets, &metrics).await;
            }
        }
    });
    Rulebooks { newest, catalogs: handle, max_stale: config.max_stale }
}

async fn enforce(publish: &watch::Sender<Arc<Rulebook>>, applied: Arc<Applied>, secrets: &Secrets, metrics: &Metrics) {
    let (before, number, secrets) = (Arc::clone(&publish.borrow()), applied.number, secrets.clone());
    // Large dictionaries take a while.
    let made = tokio::task::spawn_blocking(move || Rulebook::compile(applied, &secrets, &before)).await;
    match made {
        Ok(book) => {
            book.parts.faults().iter().for_each(|fault| tracing::error!(version = %number, fault, "not usable here"));
            publish.send_replace(Arc::new(book));
            metrics.in_force(number.get());
            tracing::info!(version = %number, "catalogue in force");
        }
        Err(error) => tracing::error!(version = %number, %error, "the catalogue cannot be put in force"),
    }
}
