//! `penstock router`: the front door of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use penstock_router::{Balance, Error, Router, ServerError};
use prometheus::Registry;
use serde::Serialize;

use crate::cluster::ClusterArgs;
use crate::fault::Fault;
use crate::process::{Ends, start_ops, write_ready_file};
use crate::tls::TlsArgs;
use crate::{output, units};

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
    /// Where /metrics, /healthz and /readyz listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", env = "PENSTOCK_OPS")]
    pub(crate) ops: SocketAddr,
    /// Serves without keys off loopback, and talks plaintext there: to anybody who reaches the address
    #[arg(long, env = "PENSTOCK_INSECURE")]
    pub(crate) insecure: bool,
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
    pub(crate) ops: SocketAddr,
}

impl FrontArgs {
    /// The router's settings.
    pub(crate) fn config(&self) -> penstock_router::Config {
        penstock_router::Config {
            http: self.http,
            grpc: self.grpc,
            insecure: self.insecure,
            deadline: self.deadline,
            grace: self.grace,
            ..penstock_router::Config::default()
        }
    }
}

/// The fault of a router that does not start.
pub(crate) fn cannot_serve(error: Error) -> Fault {
    match error {
        Error::Server(ServerError::Exposed { .. }) => Fault::bad_input(error),
        error => Fault::failed(error),
    }
}

const EXAMPLES: &str = "\
Examples:
  penstock router --etcd http://127.0.0.1:2379
  penstock router --etcd http://127.0.0.1:2379 --http 127.0.0.1:8082 --grpc 127.0.0.1:50052 --ops 127.0.0.1:9474

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
    /// How a worker is chosen: p2c (of two at random the less busy one), least-load, round-robin, random
    #[arg(long, value_name = "WAY", default_value_t = Balance::default(), env = "PENSTOCK_BALANCE")]
    balance: Balance,
}

/// Serves until it is told to end.
pub(crate) async fn run(args: RouterArgs) -> Result<(), Fault> {
    let mut ends = Ends::listen()?;
    let RouterArgs { cluster, tls, front, balance } = args;
    let connect = tls.client(front.insecure)?.connect();
    let membership = cluster.membership(front.insecure)?;
    let registry = Registry::new();
    let config = penstock_router::Config { balance, ..front.config() };
    let router = Router::start(config, membership.watch(), connect, &registry).await.map_err(cannot_serve)?;
    let status = router.status();
    let ops = start_ops(front.ops, vec![registry], move || status.readiness()).await?;
    let (http, grpc, metrics) = (router.http_addr(), router.grpc_addr(), ops.address());
    output::line(&format!("penstock {} router", env!("CARGO_PKG_VERSION")))?;
    output::line(&format!("  openai   http://{http}/v1"))?;
    output::line(&format!("  grpc     {grpc}"))?;
    output::line(&format!("  metrics  http://{metrics}/metrics"))?;
    write_ready_file(front.ready_file.as_deref(), &Addresses { http, grpc, ops: metrics })?;
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
