//! `penstock router`: the front door of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use penstock_cluster::Membership;
use penstock_router::{AdminKey, Balance, Cluster, Error, KeyError, Router, ServerError, Tcp};
use prometheus::Registry;
use serde::Serialize;

use crate::cluster::ClusterArgs;
use crate::fault::Fault;
use crate::process::{Ends, start_ops, write_ready_file};
use crate::rules::RulesArgs;
use crate::tls::{IdentityArgs, TlsArgs};
use crate::{Global, output, units};

/// What a front door takes, in a cluster or not; `up` and `router` share it.
#[derive(Args)]
#[command(next_help_heading = "Front door")]
pub(crate) struct FrontArgs {
    /// Where OpenAI's interface listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", env = "PENSTOCK_HTTP")]
    pub(crate) http: SocketAddr,
    /// Where penstock.v1.Inference listens, with health and reflection
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", env = "PENSTOCK_GRPC")]
    pub(crate) grpc: SocketAddr,
    /// Where penstock.v1.Admin listens, with health and reflection; `penstock status` and `drain` call it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081", env = "PENSTOCK_ADMIN")]
    pub(crate) admin: SocketAddr,
    /// Where /metrics, /healthz and /readyz listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", env = "PENSTOCK_OPS")]
    pub(crate) ops: SocketAddr,
    /// Serves without keys off loopback, and talks plaintext there: to anybody who reaches the address
    #[arg(long, env = "PENSTOCK_INSECURE")]
    pub(crate) insecure: bool,
    /// Asks clients of --http, --grpc and --admin for certificates from these authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "PENSTOCK_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// Writes the chosen addresses there as JSON, once ready
    #[arg(long, value_name = "FILE", env = "PENSTOCK_READY_FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// How long a request may take when it does not say
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = units::duration, env = "PENSTOCK_DEADLINE")]
    pub(crate) deadline: Duration,
    /// How long the end waits for what is in flight
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = units::duration, env = "PENSTOCK_GRACE")]
    pub(crate) grace: Duration,
}

/// What the ready file holds.
#[derive(Serialize)]
pub(crate) struct Addresses {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) ops: SocketAddr,
}

impl FrontArgs {
    /// The router's settings, with what its ports prove themselves with.
    pub(crate) fn config(&self, identity: &IdentityArgs) -> Result<penstock_router::Config, Fault> {
        Ok(penstock_router::Config {
            http: self.http,
            grpc: self.grpc,
            admin: self.admin,
            tls: identity.server(self.tls_client_ca.as_deref().map(|file| ("--tls-client-ca", file)))?,
            insecure: self.insecure,
            deadline: self.deadline,
            grace: self.grace,
            ..penstock_router::Config::default()
        })
    }
}

impl Addresses {
    /// Where a router and its ops port listen.
    pub(crate) fn of(router: &Router, ops: SocketAddr) -> Self {
        Self { http: router.http_addr(), grpc: router.grpc_addr(), admin: router.admin_addr(), ops }
    }

    /// Prints them; `scheme` is that of all but the ops port.
    pub(crate) fn announce(&self, scheme: &str) -> Result<(), Fault> {
        output::line(&format!("  openai   {scheme}://{}/v1", self.http))?;
        output::line(&format!("  grpc     {scheme}://{}", self.grpc))?;
        output::line(&format!("  admin    {scheme}://{}", self.admin))?;
        output::line(&format!("  metrics  http://{}/metrics", self.ops))
    }
}

/// What URLs of a router's ports begin with.
pub(crate) fn scheme(config: &penstock_router::Config) -> &'static str {
    if config.tls.is_some() { "https" } else { "http" }
}

/// The key of the admin port; made at the first start.
pub(crate) fn admin_key(global: &Global) -> Result<AdminKey, Fault> {
    AdminKey::read_or_create(&global.admin_key_file()).map_err(|error| match error {
        KeyError::File { .. } => Fault::failed(error),
        KeyError::Malformed { .. } => Fault::bad_input(error),
    })
}

/// A cluster, its workers reached in a certain way.
pub(crate) fn cluster(membership: &Membership, connect: penstock_router::Connect) -> Cluster {
    let members = membership.watch();
    let freshness = members.freshness();
    let staleness = Arc::new(move || freshness.staleness());
    Cluster { store: membership.store(), members: members.boxed(), staleness, connect }
}

/// The fault of a router that does not start.
pub(crate) fn cannot_serve(error: Error) -> Fault {
    match error {
        Error::Server(ServerError::Plaintext { .. }) => Fault::bad_input(error),
        error => Fault::failed(error),
    }
}

const EXAMPLES: &str = "\
Examples:
  penstock router --etcd http://127.0.0.1:2379
  penstock router --etcd http://127.0.0.1:2379 --http 127.0.0.1:8082 --grpc 127.0.0.1:50052 \\
                  --admin 127.0.0.1:8083 --ops 127.0.0.1:9474
  penstock router --etcd http://127.0.0.1:2379 --name r1 --config bank.yaml --secrets-dir /run/secrets
  penstock router --etcd https://etcd:2379 --etcd-ca ca.pem --tls-cert router.pem --tls-key router.key --tls-ca ca.pem

The first start writes admin.key under --data-dir: `penstock status` and `penstock drain` read it there.

On SIGTERM or Ctrl-C it takes no new connection, finishes what is in flight, and exits with 0. A second one ends it at once.";

/// The flags of `penstock router`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RouterArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    front: FrontArgs,
    #[command(flatten)]
    rules: RulesArgs,
    /// Its name, which tells it from other routers [default: one is made up]
    #[arg(long, env = "PENSTOCK_NAME")]
    name: Option<String>,
    /// How a worker is chosen: p2c (of two at random the less busy one), least-load, round-robin, random
    #[arg(long, value_name = "WAY", default_value_t = Balance::default(), env = "PENSTOCK_BALANCE")]
    balance: Balance,
}

/// Serves until it is told to end.
pub(crate) async fn run(args: RouterArgs, global: &Global) -> Result<(), Fault> {
    let mut ends = Ends::listen()?;
    let RouterArgs { cluster, tls, front, rules, name, balance } = args;
    let connect = Tcp { tls: tls.client()?, insecure: front.insecure }.connect();
    let membership = cluster.membership(front.insecure)?;
    let registry = Registry::new();
    let by = name.as_deref().map_or_else(|| "--config".to_owned(), |name| format!("{name} --config"));
    let config = penstock_router::Config { balance, name, ..front.config(&tls.identity)? };
    let config = tokio::select! {
        config = rules.enforce(membership.store(), &by, config) => config?,
        () = ends.next() => return Ok(()),
    };
    let (scheme, key) = (scheme(&config), admin_key(global)?);
    let router =
        Router::start(config, key, self::cluster(&membership, connect), &registry).await.map_err(cannot_serve)?;
    let status = router.status();
    let ops = start_ops(front.ops, vec![registry], move || status.readiness()).await?;
    let addresses = Addresses::of(&router, ops.address());
    output::line(&format!("penstock {} router", env!("CARGO_PKG_VERSION")))?;
    addresses.announce(scheme)?;
    write_ready_file(front.ready_file.as_deref(), &addresses)?;
    output::line("ready; it serves what its workers serve; Ctrl-C ends it")?;
    ends.next().await;
    let end = async {
        if !router.drain().await {
            tracing::warn!("the grace period is over: answers in flight were cut");
        }
        ops.drain(front.grace).await;
    };
    ends.finish(end).await
}
