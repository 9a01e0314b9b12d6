//! `penstock status`, `drain`, `undrain`: what an operator asks of a running cluster, over a router's admin port.

use clap::Args;
use penstock_proto::WorkerName;
use penstock_proto::admin::{
    DrainWorkerRequest, MemberState, StatusRequest, StatusResponse, UndrainWorkerRequest, WorkerStatus,
};
use serde::Serialize;

use crate::fault::Fault;
use crate::output::Format;
use crate::remote::ServerArgs;
use crate::{Global, output};

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
        Format::Json | Format::Yaml => output::json(&Report::of(&response)),
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
