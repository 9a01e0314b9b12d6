//! The router's settings: typed, with their defaults, checked at start. The command line fills them; the environment is
//! read for the keys of upstreams alone, whose catalogue names the variables.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::catalog::{Catalog, KeySource};
use penstock_cluster::tls::ServerTls;

use crate::balance::Balance;
use crate::server::Error;

/// Settings of one router.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tells this router from the others; None: a name of its own is made up.
    pub name: Option<String>,
    /// Where the HTTP faces listen; port 0 takes a free one.
    pub http: SocketAddr,
    /// Where the gRPC face listens; port 0 takes a free one.
    pub grpc: SocketAddr,
    /// Where `penstock.v1.Admin` listens; port 0 takes a free one.
    pub admin: SocketAddr,
    /// What the HTTP, gRPC and admin ports prove themselves with; None for plaintext.
    pub tls: Option<ServerTls>,
    /// Serves without keys and in plaintext on any address, and lets foreign Host and Origin headers in.
    pub insecure: bool,
    /// The time that a request has when it names none.
    pub deadline: Duration,
    /// How a worker is chosen.
    pub balance: Balance,
    /// How long a drain waits for what is in flight.
    pub grace: Duration,
    /// What a client may take of each server.
    pub limits: Limits,
    /// Calls no upstream, whatever the catalogue says.
    pub no_egress: bool,
    /// What a catalogue may name of this machine.
    pub secrets: Secrets,
    /// How old its knowledge of keys and rules may be before it refuses keyed traffic.
    pub max_stale: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            grpc: SocketAddr::from(([127, 0, 0, 1], 50051)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            tls: None,
            insecure: false,
            deadline: Duration::from_secs(600),
            balance: Balance::default(),
            grace: Duration::from_secs(600),
            limits: Limits::default(),
            no_egress: false,
            secrets: Secrets::default(),
            max_stale: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What a catalogue may name of the router's machine. One that was applied from afar must not be able to send any file
/// or variable to a URL of its choice; the one that the router was started with may name what it likes.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Files in it may be named.
    pub directory: Option<PathBuf>,
    /// Variables that may be named.
    pub variables: BTreeSet<String>,
    /// The catalogue that the router was started with.
    pub own: Option<Arc<Catalog>>,
}

impl Secrets {
    /// Whether a key may be taken from there.
    pub(crate) fn may_read(&self, source: &KeySource) -> bool {
        let own = self.own.iter().flat_map(|catalog| catalog.upstreams.values());
        own.filter_map(|upstream| upstream.key.as_ref()).any(|own| own == source)
            || match source {
                KeySource::Env(name) => self.variables.contains(name),
                KeySource::File(path) => self.may_open(path),
            }
    }

    /// Whether a file may be opened.
    pub(crate) fn may_open(&self, path: &Path) -> bool {
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        let within = self.directory.as_ref().is_some_and(|directory| plain && path.starts_with(directory));
        within || self.own.iter().any(|catalog| names_file(catalog, path))
    }
}

/// Whether a catalogue names a file, as a dictionary or as authorities.
fn names_file(catalog: &Catalog, path: &Path) -> bool {
    let dictionaries = catalog.detectors.values().filter_map(|detector| detector.dictionary.as_deref());
    let authorities = catalog.upstreams.values().filter_map(|upstream| upstream.ca.as_deref());
    dictionaries.chain(authorities).any(|named| named == path)
}

impl Config {
    /// Refuses an address on which anybody could read the admin key.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.insecure && !self.admin.ip().is_loopback() && self.tls.is_none() {
            return Err(Error::Plaintext { address: self.admin });
        }
        Ok(())
    }

    /// Whether a caller without a key may be answered on an address, where the catalogue has no tenants.
    pub(crate) fn keyless_at(&self, address: SocketAddr) -> bool {
        self.insecure || address.ip().is_loopback() || self.tls.as_ref().is_some_and(ServerTls::asks_clients)
    }
}

/// What clients may take of a server. Each limit bounds memory or time that a silent, slow or greedy client
/// would hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; one more is closed as it comes.
    pub connections: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams: u32,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// From the connection's start to its first whole head.
    pub head_time: Duration,
    /// From the end of the last answer to the next whole head.
    pub idle_time: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// For the whole of a body.
    pub body_time: Duration,
    /// Between two pieces of a body.
    pub body_idle: Duration,
    /// How long a client may leave a piece of its answer unread before the connection is dropped.
    pub stall_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            streams: 128,
            head_bytes: 64 << 10,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            body_idle: Duration::from_secs(10),
            stall_time: Duration::from_secs(30),
        }
    }
}

/// A variable that a catalogue names; None where it is not set or not Unicode.
#[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
