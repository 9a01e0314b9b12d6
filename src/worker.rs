//! `penstock worker`: one engine behind gRPC, a member of a cluster.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use penstock_proto::id::InvalidName;
use penstock_proto::{ModelName, WorkerName};
use penstock_router::Readiness;
use penstock_worker::config::{self, KvMemory, Timing};
use penstock_worker::{Config, Observers, Stage, Worker, lifecycle, progress};
use prometheus::Registry;
use serde::Serialize;
use tokio::sync::watch;

use crate::cluster::ClusterArgs;
use crate::fault::Fault;
use crate::process::{Ends, bind, start_ops, write_ready_file};
use crate::tls::TlsArgs;
use crate::{Global, output, units};

/// What an engine serves, and with what; `up` and `worker` share it.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// What to serve: a name, a file, or a source, with NAME= before it to serve it under that name
    #[arg(long, value_name = "[NAME=]MODEL", default_value = "smollm2-135m", env = "PENSTOCK_MODEL")]
    model: ServedModel,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", env = "PENSTOCK_THREADS")]
    threads: Option<NonZeroUsize>,
    /// Memory for keys and values: auto, 512MiB, 4GiB
    #[arg(long, value_name = "SIZE", default_value_t = KvMemory::Auto, env = "PENSTOCK_KV_MEMORY")]
    kv_memory: KvMemory,
    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 64, env = "PENSTOCK_MAX_SEQUENCES")]
    max_sequences: usize,
    /// Sequences that may wait; more are refused with 503
    #[arg(long, value_name = "N", default_value_t = 256, env = "PENSTOCK_MAX_WAITING")]
    max_waiting: usize,
    /// Tokens that a step computes at most: prompts are read in chunks of it
    #[arg(long, value_name = "N", default_value_t = 512, env = "PENSTOCK_MAX_BATCH_TOKENS")]
    max_batch_tokens: usize,
    /// What runs the model: its weights, or a stand-in with set timing that needs no model file
    #[arg(long, value_enum, default_value = "model", env = "PENSTOCK_RUNNER")]
    runner: Runner,
    /// Tokens that the stand-in computes in a second, read or written
    #[arg(long, value_name = "TOKENS/S", default_value = "10000", env = "PENSTOCK_SCRIPTED_PREFILL_RATE")]
    scripted_prefill_rate: NonZeroU32,
    /// What each of the stand-in's steps takes beyond that
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = units::duration, env = "PENSTOCK_SCRIPTED_STEP_TIME")]
    scripted_step_time: Duration,
}

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runner {
    /// The model's own weights.
    Model,
    /// A stand-in without weights, to rehearse a fleet.
    Scripted,
}

/// A model and, where one is asked for, the name that it is served under.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServedModel {
    name: Option<ModelName>,
    word: String,
}

impl FromStr for ServedModel {
    type Err = InvalidName;

    /// `NAME=` counts only before a source's own signs: `pypi:PKG==VER/FILE` has no name.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('=') {
            Some((name, word)) if !name.contains([':', '/', '.']) => {
                Ok(Self { name: Some(ModelName::new(name)?), word: word.to_owned() })
            }
            _ => Ok(Self { name: None, word: text.to_owned() }),
        }
    }
}

impl EngineArgs {
    /// Has the model's file, loads it, and sends a first batch through it.
    pub(crate) async fn load(
        &self,
        name: WorkerName,
        grace: Duration,
        global: &Global,
        (registry, stage): (Registry, watch::Sender<Stage>),
    ) -> Result<Worker, Fault> {
        let config = Config {
            served_name: self.served_name()?,
            runner: match self.runner {
                Runner::Model => config::Runner::Model,
                Runner::Scripted => config::Runner::Scripted(Timing {
                    tokens_per_second: self.scripted_prefill_rate,
                    step: self.scripted_step_time,
                }),
            },
            threads: self.threads,
            kv: self.kv_memory,
            max_batch_tokens: self.max_batch_tokens,
            max_sequences: self.max_sequences,
            max_waiting: self.max_waiting,
            drain_timeout: grace,
            ..Config::new(name, self.model.word.clone(), global.data_dir())
        };
        let observers = Observers { registry, stage, report: progress::bar(&self.model.word) };
        Worker::load(&config, &observers).await.map_err(|error| match error {
            lifecycle::Error::Artifact(_) | lifecycle::Error::Model(_) | lifecycle::Error::Load { .. } => {
                Fault::bad_input(error)
            }
            error => Fault::failed(error),
        })
    }

    /// A model's own name is its file's; a stand-in has no file.
    fn served_name(&self) -> Result<Option<ModelName>, Fault> {
        match (self.runner, &self.model.name) {
            (Runner::Model, name) => Ok(name.clone()),
            (Runner::Scripted, Some(name)) => Ok(Some(name.clone())),
            (Runner::Scripted, None) => {
                let name = ModelName::new(&self.model.word);
                name.map(Some).map_err(|error| Fault::bad_input(format!("--model: {error}")))
            }
        }
    }
}

/// What a worker's stage says against new work.
pub(crate) fn readiness(stage: Stage) -> Readiness {
    let reasons = if stage == Stage::Serving { Vec::new() } else { vec![format!("the worker is {stage}")] };
    Readiness { reasons }
}

/// What a loaded worker serves, in words.
pub(crate) fn about(worker: &Worker) -> String {
    let card = worker.card();
    let (name, architecture, quantisation) = (&card.name, &card.architecture, &card.quantisation);
    let (parameters, context) = (card.parameters as f64 / 1e6, card.context_length);
    format!("{name} ({architecture}, {quantisation}, {parameters:.1} M parameters, context {context})")
}

const EXAMPLES: &str = "\
Examples:
  penstock worker --etcd http://127.0.0.1:2379
  penstock worker --etcd http://127.0.0.1:2379 --name w2 --grpc 127.0.0.1:50062 --ops 127.0.0.1:9466
  penstock worker --etcd http://127.0.0.1:2379 --runner scripted --model rehearsal

On SIGTERM or Ctrl-C it leaves the cluster, finishes what is in flight, and exits with 0. A second one ends it at once.";

/// The flags of `penstock worker`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Its name in the cluster [default: the host's name and the gRPC port]
    #[arg(long, env = "PENSTOCK_NAME")]
    name: Option<WorkerName>,
    /// Where routers reach it; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50061", env = "PENSTOCK_GRPC")]
    grpc: SocketAddr,
    /// The address that it tells the cluster, HOST:PORT [default: where --grpc listens]
    #[arg(long, value_name = "ADDR", env = "PENSTOCK_ADVERTISE")]
    advertise: Option<String>,
    /// Where /metrics, /healthz and /readyz listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9465", env = "PENSTOCK_OPS")]
    ops: SocketAddr,
    /// Listens, and talks to etcd, off loopback without TLS: to anybody who reaches the address
    #[arg(long, env = "PENSTOCK_INSECURE")]
    insecure: bool,
    /// Writes the chosen addresses there as JSON, once ready
    #[arg(long, value_name = "FILE", env = "PENSTOCK_READY_FILE")]
    ready_file: Option<PathBuf>,
    /// How long the end waits for what is in flight
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = units::duration, env = "PENSTOCK_GRACE")]
    grace: Duration,
}

/// What the ready file holds.
#[derive(Serialize)]
struct Addresses {
    grpc: SocketAddr,
    ops: SocketAddr,
}

/// Serves until it is told to end.
pub(crate) async fn run(args: WorkerArgs, global: &Global) -> Result<(), Fault> {
    let mut ends = Ends::listen()?;
    let tls = args.tls.server()?;
    if tls.is_none() && !args.insecure && !args.grpc.ip().is_loopback() {
        let message = format!("--grpc {} is not loopback: give --tls-cert and --tls-key, or --insecure", args.grpc);
        return Err(Fault::bad_input(message));
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let membership = args.cluster.membership(args.insecure)?;
    let listener = bind(args.grpc, "--grpc").await?;
    let grpc = listener.local_addr().map_err(Fault::failed)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(grpc)?,
    };
    let registry = Registry::new();
    let (stage, watched) = watch::channel(Stage::Loading);
    let ops = start_ops(args.ops, vec![registry.clone()], move || readiness(*watched.borrow())).await?;

    let loading = args.engine.load(name.clone(), args.grace, global, (registry, stage));
    let worker = tokio::select! {
        worker = loading => worker?,
        () = ends.next() => return Ok(()),
    };
    let mut serving = Box::pin(worker.serve(listener, tls));
    let endpoint = format!("{scheme}://{}", args.advertise.clone().unwrap_or_else(|| grpc.to_string()));
    tokio::select! {
        joined = worker.join(membership, endpoint.clone()) => joined.map_err(Fault::failed)?,
        ended = &mut serving => return ended.map_err(Fault::failed),
        () = ends.next() => return Ok(()),
    }
    output::line(&format!("penstock {} worker {name} serves {}", env!("CARGO_PKG_VERSION"), about(&worker)))?;
    output::line(&format!("  grpc     {endpoint}"))?;
    output::line(&format!("  metrics  http://{}/metrics", ops.address()))?;
    write_ready_file(args.ready_file.as_deref(), &Addresses { grpc, ops: ops.address() })?;
    output::line("ready; Ctrl-C ends it")?;
    tokio::select! {
        ended = &mut serving => return ended.map_err(Fault::failed),
        () = ends.next() => {}
    }
    let end = async {
        // The server runs on, and so finishes what is in flight, until the worker's shutdown ends it.
        let ((), served) = tokio::join!(worker.shutdown(), serving);
        if let Err(error) = served {
            tracing::error!(%error, "the gRPC server failed");
        }
        ops.drain(args.grace).await;
    };
    ends.finish(end).await
}

/// The host's name and the port: two workers of a host differ, and one that starts again has the same.
fn default_name(grpc: SocketAddr) -> Result<WorkerName, Fault> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "worker" } else { host.trim() };
    WorkerName::new(format!("{host}-{}", grpc.port())).map_err(|error| Fault::bad_input(format!("--name: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_before_the_model_and_a_source_has_none() {
        let parse = |text: &str| text.parse::<ServedModel>().unwrap();
        let named = |name: &str, word: &str| ServedModel { name: ModelName::new(name).ok(), word: word.to_owned() };
        assert_eq!(parse("risk=/models/risk.gguf"), named("risk", "/models/risk.gguf"));
        assert_eq!(parse("a=pypi:p==1/f"), named("a", "pypi:p==1/f"));
        assert_eq!(parse("pypi:p==1/f"), ServedModel { name: None, word: "pypi:p==1/f".to_owned() });
        assert_eq!(parse("/odd=dir/m.gguf"), ServedModel { name: None, word: "/odd=dir/m.gguf".to_owned() });
        assert!("=x".parse::<ServedModel>().is_err());
    }
}
