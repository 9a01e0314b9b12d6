//! Penstock's front door: faces, dispatch, text. What a request passes through stands in `docs/architecture.md`; this
//! file wires the parts and owns their order of start and end.

mod api;
mod balance;
pub mod config;
mod dispatch;
mod fleet;
mod metrics;
pub mod ops;
pub mod prompt;
mod replica;
pub mod request;
mod server;
pub mod text;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, Stream};
use penstock_cluster::MemberEvent;
use prometheus::Registry;

pub use balance::{Balance, UnknownBalance};
pub use config::{Config, Limits};
pub use fleet::{Connect, ConnectError, Tcp};
pub use metrics::render;
pub use ops::{Ops, Readiness};
pub use server::Error as ServerError;

use api::Api;
use api::grpc::Grpc;
use dispatch::Dispatch;
use fleet::Fleet;
use metrics::Metrics;
use server::{Handler, Server};

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
    grpc: Grpc,
    status: Status,
    grace: Duration,
}

/// What a router tells of itself; outlives it.
#[derive(Clone)]
pub struct Status {
    fleet: Fleet,
    draining: Arc<AtomicBool>,
}

impl Router {
    /// Listens, follows the members and serves. `connect` opens the channel to a member's endpoint: [`Tcp`], or what
    /// knows of pipes within the process. The metrics go to `registry`.
    ///
    /// It answers at once, whoever has joined; [`Status::ready`] waits until a model is served.
    pub async fn start(
        config: Config,
        members: impl Stream<Item = MemberEvent> + Send + 'static,
        connect: Connect,
        registry: &Registry,
    ) -> Result<Self, Error> {
        for address in [config.http, config.grpc] {
            if !config.insecure && !address.ip().is_loopback() {
                return Err(ServerError::Exposed { address }.into());
            }
        }
        let metrics = Arc::new(Metrics::new(registry)?);
        let fleet = Fleet::start(members, connect, Arc::clone(&metrics));
        let status = Status { fleet: fleet.clone(), draining: Arc::default() };
        let (http, grpc, limits, grace) = (config.http, config.grpc, config.limits.clone(), config.grace);
        let dispatch = Dispatch::new(fleet.clone(), config.balance, Arc::clone(&metrics));
        let api = Arc::new(Api::new(config, dispatch, metrics));
        let grpc = Grpc::start(grpc, Arc::clone(&api), fleet).await?;
        let handler: Handler = Arc::new(move |request| Arc::clone(&api).answer(request).boxed());
        let server = Server::start(http, "--http", limits, handler).await?;
        Ok(Self { server, grpc, status, grace })
    }

    /// Where the HTTP faces listen.
    pub fn http_addr(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where the gRPC face listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.address()
    }

    /// What it tells of itself.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Reports itself as not ready, takes no new connection, waits for the answers in flight, at most the configured
    /// grace, and ends. Returns whether everything had finished.
    pub async fn drain(self) -> bool {
        self.status.draining.store(true, Ordering::Relaxed);
        let (http, grpc) = tokio::join!(self.server.drain(self.grace), self.grpc.drain(self.grace));
        self.status.fleet.stop().await;
        http && grpc
    }
}

impl Status {
    /// Whether it takes new work, for `/readyz`.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("the router is draining".to_owned());
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
