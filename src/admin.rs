//! `penstock status`, `drain`, `undrain`: what an operator asks of a running cluster, over a router's admin port.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use penstock_proto::admin::{
    AdminClient, DrainWorkerRequest, MemberState, StatusRequest, StatusResponse, UndrainWorkerRequest, WorkerStatus,
};
use penstock_proto::{ErrorCode, WorkerName};
use penstock_router::{AdminKey, Causes};
use serde::Serialize;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::cluster::is_exposed;
use crate::fault::Fault;
use crate::output::Format;
use crate::tls::TlsArgs;
use crate::{Global, output};

/// How long a router may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Which router is asked, and with what key.
#[derive(Args)]
#[command(next_help_heading = "Router")]
struct ServerArgs {
    /// The admin port of any router of the cluster: HOST:PORT
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081", env = "PENSTOCK_SERVER")]
    server: String,
    /// The file that holds the router's admin key [default: admin.key under --data-dir]
    #[arg(long, value_name = "FILE", env = "PENSTOCK_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// Sends the key off loopback in plaintext: to anybody who reads along
    #[arg(long, env = "PENSTOCK_INSECURE")]
    insecure: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

const STATUS: &str = "\
Examples:
  penstock status
  penstock status --server 10.0.0.5:8081 --tls-ca ca.pem --admin-key-file admin.key
  penstock status -o json | jq -r '.workers[] | select(.state != \"ready\") | .name'

States: loading (the router takes it in), ready (takes work), draining (finishes what it has), unusable (PROBLEM says
why). IN FLIGHT is what this router has on the worker; RUNNING and WAITING are from all routers. WAIT is how long a new
request would wait.

Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 3 the router is not reachable.";

/// The flags of `penstock status`.
#[derive(Args)]
#[command(after_help = STATUS)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
}

const WORKER: &str = "\
Examples:
  penstock drain w1         before the machine of w1 is touched: returns when nothing runs on it any more
  penstock undrain w1       after it: w1 takes work again
  penstock status           the names of the workers

Any router will do, the others follow. A drained worker keeps running and stays in the cluster; `undrain` works at any
time, also while a drain waits. Ctrl-C ends the wait, not the drain. Requests that come meanwhile go to other workers;
where no other one serves the model, they are refused.

Exit codes: 0 done, 1 failed, 2 bad usage or an unknown worker, 3 the router is not reachable.";

/// The flags of `penstock drain` and `penstock undrain`.
#[derive(Args)]
#[command(after_help = WORKER)]
pub(crate) struct WorkerArgs {
    /// The worker's name, as `penstock status` lists it
    worker: WorkerName,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints what the router knows of the cluster.
pub(crate) async fn status(args: StatusArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(StatusRequest {});
    let response = router.client.status(request).await.map_err(|status| router.failed(&status))?.into_inner();
    match Format::or_default(global.output) {
        Format::Json => output::json(&Report::of(&response)),
        Format::Table => table(&response),
    }
}

/// Gives a worker no new work, and waits until it has none.
pub(crate) async fn drain(args: WorkerArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(DrainWorkerRequest { name: args.worker.to_string() });
    router.client.drain_worker(request).await.map_err(|status| router.failed(&status))?;
    output::line(&format!("{} is drained: nothing is in flight on it, and it gets no new work", args.worker))
}

/// Gives a worker work again.
pub(crate) async fn undrain(args: WorkerArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let request = router.authorized(UndrainWorkerRequest { name: args.worker.to_string() });
    router.client.undrain_worker(request).await.map_err(|status| router.failed(&status))?;
    output::line(&format!("{} takes work again", args.worker))
}

/// A router that has answered.
struct Router {
    client: AdminClient<Channel>,
    key: AdminKey,
    url: String,
}

impl ServerArgs {
    async fn connect(&self, global: &Global) -> Result<Router, Fault> {
        let file = self.admin_key_file.clone().unwrap_or_else(|| global.admin_key_file());
        let key = AdminKey::read(&file).map_err(|error| {
            Fault::bad_input(format!("{error}; --data-dir or --admin-key-file names the one that the router wrote"))
        })?;
        let tls = self.tls.client()?;
        let url = self.url(tls.is_some())?;
        let bad = |error: tonic::transport::Error| Fault::bad_input(format!("--server {url}: {}", Causes(&error)));
        let endpoint = Endpoint::from_shared(url.clone()).map_err(bad)?.connect_timeout(CONNECT);
        let endpoint = tls.into_iter().try_fold(endpoint, Endpoint::tls_config).map_err(bad)?;
        let channel = endpoint.connect().await.map_err(|error| not_reachable(&url, &Causes(&error).to_string()))?;
        Ok(Router { client: AdminClient::new(channel), key, url })
    }

    fn url(&self, tls: bool) -> Result<String, Fault> {
        let url = match self.server.split_once("://") {
            None if tls => format!("https://{}", self.server),
            None => format!("http://{}", self.server),
            Some(("http", _)) if tls => {
                return Err(Fault::bad_input(format!("--server {}: --tls-ca is for https", self.server)));
            }
            Some(("https", _)) if !tls => {
                let message = format!("--server {}: --tls-ca names the authorities to check it against", self.server);
                return Err(Fault::bad_input(message));
            }
            Some(_) => self.server.clone(),
        };
        if !self.insecure && is_exposed(&url) {
            let message = format!("--server {url} is plaintext off loopback: give --tls-ca, or --insecure");
            return Err(Fault::bad_input(message));
        }
        Ok(url)
    }
}

impl Router {
    fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(self.key.header().as_bytes()).expect("a key is hex digits");
        request.metadata_mut().insert("authorization", value);
        request
    }

    /// A router's refusal, or the end of the way to it.
    fn failed(&self, status: &Status) -> Fault {
        match ErrorCode::from_status(status) {
            Some((ErrorCode::WorkerNotFound | ErrorCode::InvalidRequest, _)) => Fault::bad_input(status.message()),
            Some(_) => Fault::failed(status.message()),
            None => match std::error::Error::source(status) {
                Some(lost) => not_reachable(&self.url, &Causes(lost).to_string()),
                None => {
                    let (url, reason) = (&self.url, status.message());
                    Fault::failed(format!("{url} does not answer as the admin port of a router: {reason}"))
                }
            },
        }
    }
}

fn not_reachable(url: &str, reason: &str) -> Fault {
    let hint = if url.starts_with("https") {
        "is that the admin port of a router with TLS, and --tls-ca its authority? A router that asks clients for \
         certificates wants --tls-cert and --tls-key from its own authority; its log says why it refused"
    } else {
        "is that the admin port of a router? Where it has TLS, give --tls-ca"
    };
    Fault::not_reachable(format!("{url} is not reachable: {reason}; {hint}"))
}

/// What scripts read.
#[derive(Serialize)]
struct Report {
    workers: Vec<Row>,
    store_staleness_seconds: f64,
}

#[derive(Serialize)]
struct Row {
    name: String,
    state: &'static str,
    models: Vec<String>,
    in_flight: u32,
    running: u32,
    waiting: u32,
    kv_blocks_used: u32,
    kv_blocks_total: u32,
    predicted_wait_seconds: f64,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Report {
    fn of(response: &StatusResponse) -> Self {
        let workers = response.workers.iter().map(Row::of).collect();
        Self { workers, store_staleness_seconds: response.store_staleness_seconds }
    }
}

impl Row {
    fn of(worker: &WorkerStatus) -> Self {
        Self {
            name: worker.name.clone(),
            state: state(worker.state()),
            models: worker.models.clone(),
            in_flight: worker.in_flight,
            running: worker.running,
            waiting: worker.waiting,
            kv_blocks_used: worker.kv_blocks_used,
            kv_blocks_total: worker.kv_blocks_total,
            predicted_wait_seconds: worker.predicted_wait_seconds,
            endpoint: worker.endpoint.clone(),
            problem: (!worker.problem.is_empty()).then(|| worker.problem.clone()),
        }
    }
}

fn state(state: MemberState) -> &'static str {
    match state {
        MemberState::Unspecified => "unknown",
        MemberState::Loading => "loading",
        MemberState::Ready => "ready",
        MemberState::Draining => "draining",
        MemberState::Unusable => "unusable",
    }
}

fn table(response: &StatusResponse) -> Result<(), Fault> {
    let row = |worker: &WorkerStatus| {
        [
            worker.name.clone(),
            state(worker.state()).to_owned(),
            worker.models.join(","),
            worker.in_flight.to_string(),
            worker.running.to_string(),
            worker.waiting.to_string(),
            format!("{}/{}", worker.kv_blocks_used, worker.kv_blocks_total),
            format!("{:.1} s", worker.predicted_wait_seconds),
            worker.endpoint.clone(),
            worker.problem.clone(),
        ]
    };
    let header =
        ["NAME", "STATE", "MODELS", "IN FLIGHT", "RUNNING", "WAITING", "KV BLOCKS", "WAIT", "ENDPOINT", "PROBLEM"];
    output::table(header, &response.workers.iter().map(row).collect::<Vec<_>>())?;
    if response.workers.is_empty() {
        output::line("no worker has joined: start one with `penstock worker`")?;
    }
    if response.store_staleness_seconds > 0.0 {
        let seconds = response.store_staleness_seconds;
        output::line(&format!(
            "etcd has not answered this router for {seconds:.0} s: who has come or gone since is not known"
        ))?;
    }
    Ok(())
}
