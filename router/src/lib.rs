//! Penstock's front door: faces, dispatch, text. What a request passes through stands in `docs/architecture.md`; this
//! file wires the parts and owns their order of start and end.

mod admin;
mod api;
mod balance;
mod budget;
pub mod class;
pub mod config;
mod dispatch;
mod filter;
mod fleet;
mod metrics;
pub mod ops;
pub mod policy;
mod port;
pub mod prompt;
mod replica;
pub mod request;
mod rulebook;
mod ruling;
mod server;
pub mod tenant;
pub mod text;
mod tools;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::BoxStream;
use penstock_cluster::{MemberEvent, Store, catalog};
use penstock_proto::RequestId;
use prometheus::Registry;
use tokio_util::task::TaskTracker;

pub use admin::{AdminKey, Change, KeyError, Published, Publisher, Staleness, Terms};
pub use balance::{Balance, UnknownBalance};
pub use config::{Config, Limits, Secrets};
pub use fleet::{Connect, ConnectError, Tcp};
pub use metrics::render;
pub use ops::{Ops, Readiness};
pub use replica::Causes;
pub use server::Error as ServerError;

use admin::Admin;
use api::{Api, grpc};
use budget::Budgets;
use class::Sessions;
use dispatch::Dispatch;
use fleet::Fleet;
use metrics::Metrics;
use policy::Egress;
use port::Port;
use rulebook::Rulebooks;
use ruling::Rulings;
use server::{Handler, Listen, Server};
use tenant::Limiter;

/// How long a drained router takes to give leased limits back.
const GIVING_BACK: Duration = Duration::from_secs(2);

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its address cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The registry has metrics of these names already.
    #[error("the metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A serving router. Dropping it ends it at once; [`Router::drain`] lets it finish.
pub struct Router {
    server: Server,
    grpc: Port,
    admin: Port,
    status: Status,
    limiter: Arc<Limiter>,
    budgets: Arc<Budgets>,
    /// What gives back what is leased. Those who follow the store end with their last reader instead, which may be a [`Status`].
    leases: TaskTracker,
    grace: Duration,
}

/// What a router shares with others: the state, and the workers.
pub struct Cluster {
    /// Where the catalogue is, and what tenants have used of their limits.
    pub store: Arc<dyn Store>,
    /// Who comes and goes.
    pub members: BoxStream<'static, MemberEvent>,
    /// How old that is.
    pub staleness: Staleness,
    /// Opens the channel to a member's endpoint: [`Tcp`], or what knows of pipes within the process.
    pub connect: Connect,
}

/// What a router tells of itself; outlives it.
#[derive(Clone)]
pub struct Status {
    fleet: Fleet,
    rulebooks: Rulebooks,
    draining: Arc<AtomicBool>,
}

impl Router {
    /// Listens, follows the members and serves; `key` opens the admin port. The metrics go to `registry`.
    ///
    /// It answers at once, whoever has joined; [`Status::ready`] waits until a model is served.
    pub async fn start(config: Config, key: AdminKey, cluster: Cluster, registry: &Registry) -> Result<Self, Error> {
        config.check()?;
        let Cluster { store, members, staleness, connect } = cluster;
        let (tasks, leases) = (TaskTracker::new(), TaskTracker::new());
        let metrics = Arc::new(Metrics::new(registry)?);
        let catalogs = catalog::watch(Arc::clone(&store), &tasks);
        let rulebooks = rulebook::follow(catalogs, &config, Arc::clone(&metrics), &tasks).await;
        let fleet = Fleet::start(members, Arc::clone(&connect), Arc::clone(&metrics));
        let status = Status { fleet: fleet.clone(), rulebooks: rulebooks.clone(), draining: Arc::default() };
        let egress = if config.no_egress { Egress::Forbidden } else { Egress::Allowed };
        let sessions = Sessions::watch(Arc::clone(&store), &tasks);
        let name = config.name.clone().unwrap_or_else(|| format!("router-{}", RequestId::generate()));
        let limiter = Arc::new(Limiter::new(Arc::clone(&store), &name, &leases));
        let budgets = Arc::new(Budgets::new(limiter.backing(), Arc::clone(&metrics), &tasks));
        let known = (rulebooks, fleet.clone());
        let rulings = Arc::new(Rulings::new(known, sessions.clone(), Arc::clone(&budgets), egress));
        let (tls, limits, grace) = (config.tls.clone(), config.limits.clone(), config.grace);
        let listen = |address, flag| Listen { address, flag, tls: tls.clone(), limits: limits.clone() };
        let [http, grpc, admin] = [(config.http, "--http"), (config.grpc, "--grpc"), (config.admin, "--admin")]
            .map(|(at, flag)| listen(at, flag));
        let dispatch = Dispatch::new(fleet.clone(), config.balance, Arc::clone(&budgets), Arc::clone(&metrics));
        let admin_state = Admin {
            fleet: fleet.clone(),
            connect,
            staleness,
            publisher: Publisher::new(Arc::clone(&store), config.secrets.clone()),
            sessions,
            store: Arc::clone(&store),
            rulings: Arc::clone(&rulings),
            budgets: Arc::clone(&budgets),
        };
        let api = Arc::new(Api::new(config, rulings, Arc::clone(&limiter), (dispatch, metrics)));
        let grpc = grpc::start(grpc, Arc::clone(&api), fleet).await?;
        let admin = admin::start(admin, admin_state, key).await?;
        let handler: Handler = Arc::new(move |request| Arc::clone(&api).answer(request).boxed());
        let http = Listen { tls: http.tls.map(|tls| tls.speaking(&["h2", "http/1.1"])), ..http };
        let server = Server::start(http, handler).await?;
        Ok(Self { server, grpc, admin, status, limiter, budgets, leases, grace })
    }

    /// Where the HTTP faces listen.
    pub fn http_addr(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where the gRPC face listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.address()
    }

    /// Where the admin port listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.address()
    }

    /// What it tells of itself.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Reports itself as not ready, takes no new connection, waits for the answers in flight, at most the configured
    /// grace, and ends. Returns whether everything had finished.
    pub async fn drain(self) -> bool {
        self.status.draining.store(true, Ordering::Relaxed);
        let grace = self.grace;
        let (http, grpc, admin) =
            tokio::join!(self.server.drain(grace), self.grpc.drain(grace), self.admin.drain(grace));
        self.status.fleet.stop().await;
        // What was spent is written down while the lease stands that the slices are bound to.
        if tokio::time::timeout(GIVING_BACK, self.budgets.close()).await.is_err() {
            tracing::warn!("what was spent in the last second of budgets was not written down in time");
        }
        // What is leased of limits goes back to the other routers at once.
        self.limiter.stop();
        self.leases.close();
        if tokio::time::timeout(GIVING_BACK, self.leases.wait()).await.is_err() {
            tracing::warn!("what is leased of tenants' limits was not given back; it comes back by itself");
        }
        http && grpc && admin
    }
}

impl Status {
    /// Whether it takes new work, for `/readyz`.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("the router is draining".to_owned());
        }
        if !self.rulebooks.synced() {
            reasons.push("the catalogue has not been read yet".to_owned());
        }
        if !self.fleet.serves() {
            reasons.push("no model is served yet".to_owned());
        }
        Readiness { reasons }
    }

    /// Waits until a model is served.
    pub async fn ready(&self) {
        self.fleet.ready().await;
    }
}
