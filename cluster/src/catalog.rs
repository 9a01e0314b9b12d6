//! The catalogue: who may ask, for what, where it may go, and what is searched for. YAML documents, in one file or
//! several, become one [`Catalog`] that is valid as a whole, or an error that names file, line and reason.
//!
//! The store keeps catalogues as they were written, one after the other, each with a version (`history`); every router
//! follows the newest ([`watch`]). Keys stand in it as hashes only. What a router does with a catalogue is its own
//! matter.

mod check;
mod diff;
mod document;
mod draft;
mod error;
mod history;
mod issued;
mod moment;
mod name;
mod pattern;
mod read;
mod route;
mod rule;
mod watcher;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use penstock_proto::DataClass;
use serde::{Deserialize, Serialize};

pub use diff::{Change, Diff, Kind};
pub use document::{
    Adapter, Algorithm, BUILT_IN_DETECTORS, Budget, Check, Cost, Detector, IssuedKey, Issuer, Key, KeySet, KeySource,
    Limits, Lined, MaxTokensField, Model, Operator, OperatorRole, Period, Price, Protocol, Revoked, Tenant, Timeouts,
    Upstream, UpstreamModel, Version, WhenSpent,
};
pub use draft::Draft;
pub use error::{Invalid, Problem};
pub use history::{Applied, Error, Number, Origin, apply, get, rollback, versions};
pub use issued::{Edit, ISSUED, Refused};
pub use moment::Moment;
pub use name::{Digest, Glob, InvalidWord, Name, Ratio, Span, Usd};
pub use pattern::{InvalidPattern, Pattern};
pub use route::{AbortIf, Canary, Filter, FilterAction, Order, Overflow, Route, RouteRule, Shadow, Share, Target};
pub use rule::{Facts, InvalidRule, Rule, RuleFailed};
pub use watcher::{Catalogs, watch};

/// A file of YAML documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What errors call it.
    pub file: String,
    /// Its content.
    pub text: String,
}

/// A place in a catalogue; written as `FILE:LINE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The file.
    pub file: Arc<str>,
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

impl Serialize for At {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A thing of the catalogue and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed<T> {
    /// Where it begins.
    pub at: At,
    /// What it is.
    pub value: T,
}

impl<T> Placed<T> {
    /// A place within it.
    pub fn line(&self, line: u64) -> At {
        At { file: Arc::clone(&self.at.file), line }
    }
}

impl<T> Deref for Placed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Things of one kind by their names.
pub type Named<T> = BTreeMap<Name, Placed<T>>;

/// A catalogue that is valid as a whole.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    sources: Vec<Source>,
    warnings: Vec<Problem>,
    /// Who sends requests.
    pub tenants: Named<Tenant>,
    /// Tenants' keys that stand apart from their tenants.
    pub keys: Vec<Placed<IssuedKey>>,
    /// Keys that have ended, or will.
    pub revoked: Vec<Placed<Revoked>>,
    /// Providers outside.
    pub upstreams: Named<Upstream>,
    /// Who runs the cluster.
    pub operators: Named<Operator>,
    /// Who issues tokens that stand for tenants.
    pub issuers: Named<Issuer>,
    /// Models of the cluster's own.
    pub models: Named<Model>,
    /// LoRA adapters.
    pub adapters: Named<Adapter>,
    /// What clients ask for.
    pub routes: Named<Route>,
    /// What is searched for, beside the built-in detectors.
    pub detectors: Named<Detector>,
}

impl Catalog {
    /// Reads and checks a catalogue.
    ///
    /// # Errors
    ///
    /// [`Invalid`], with everything that is wrong: file, line and reason.
    pub fn read(sources: Vec<Source>) -> Result<Self, Invalid> {
        let mut catalog = read::read(sources)?;
        catalog.warnings = check::check(&catalog)?;
        Ok(catalog)
    }

    /// As it was written.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What is allowed and hardly meant.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// What one has to do to come from this one to `new`.
    pub fn diff(&self, new: &Self) -> Diff {
        diff::diff(self, new)
    }

    /// The highest class that may reach a target, and where the catalogue says so; None where it names no such target.
    pub fn ceiling(&self, target: &Target) -> Option<(DataClass, At)> {
        match target {
            Target::Local { model, .. } => self.models.get(model).map(|model| (model.ceiling, model.at.clone())),
            Target::Upstream { upstream, .. } => {
                self.upstreams.get(upstream).map(|upstream| (upstream.ceiling, upstream.at.clone()))
            }
        }
    }

    /// The price of an upstream's model; None where the catalogue has none for it.
    pub fn price(&self, upstream: &Upstream, model: &str) -> Option<Price> {
        let listed = upstream.models.iter().find(|listed| listed.name.as_str() == model);
        listed.and_then(|listed| listed.price).or(upstream.price)
    }
}

impl PartialEq for Catalog {
    fn eq(&self, other: &Self) -> bool {
        self.sources == other.sources
    }
}
