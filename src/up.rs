//! `penstock up`: router, worker and cluster state in one process.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use penstock_cluster::Membership;
use penstock_cluster::store::MemoryStore;
use penstock_proto::id::InvalidName;
use penstock_proto::{ModelName, WorkerName};
use penstock_router::{Connect, Ops, Router, ops};
use penstock_worker::config::KvMemory;
use penstock_worker::{Observers, Stage, Worker, lifecycle as worker, progress};
use prometheus::Registry;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::{Global, output, units};

const EXAMPLES: &str = "\
Examples:
  penstock up
  penstock up --model assistant=/mnt/models/assistant.Q8_0.gguf --http 127.0.0.1:9000
  penstock up --kv-memory 4GiB --max-sequences 32

It ends on SIGTERM or Ctrl-C: no new work, what is in flight finishes, exit code 0. A second one ends it at once.";

/// The flags of `penstock up`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// What to serve: a name, a file, or a source, with NAME= before it to serve it under that name
    #[arg(long, value_name = "[NAME=]MODEL", default_value = "smollm2-135m", env = "PENSTOCK_MODEL")]
    model: ServedModel,
    /// Where OpenAI's interface listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", env = "PENSTOCK_HTTP")]
    http: SocketAddr,
    /// Where /metrics, /healthz and /readyz listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", env = "PENSTOCK_OPS")]
    ops: SocketAddr,
    /// Serves without keys off loopback, to anybody who reaches the address
    #[arg(long, env = "PENSTOCK_INSECURE")]
    insecure: bool,
    /// Writes the chosen addresses there as JSON, once ready
    #[arg(long, value_name = "FILE", env = "PENSTOCK_READY_FILE")]
    ready_file: Option<PathBuf>,
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
    /// How long a request may take when it does not say
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = units::duration, env = "PENSTOCK_DEADLINE")]
    deadline: Duration,
    /// How long the end waits for what is in flight
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = units::duration, env = "PENSTOCK_GRACE")]
    grace: Duration,
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

/// Serves until it is told to end.
pub(crate) async fn run(args: UpArgs, global: &Global) -> Result<(), Fault> {
    let start = Instant::now();
    let mut ends = Ends::listen()?;
    let up = tokio::select! {
        up = Up::start(&args, global) => up?,
        () = ends.next() => return Ok(()),
    };
    up.announce(&args, start.elapsed())?;
    ends.next().await;
    tracing::info!(grace_seconds = args.grace.as_secs(), "ending: no new work, what is in flight finishes");
    tokio::select! {
        () = up.end() => Ok(()),
        () = ends.next() => Err(Fault::failed("told to end twice: what was in flight is lost")),
    }
}

/// The signals that end the process.
struct Ends {
    term: Signal,
    int: Signal,
}

impl Ends {
    fn listen() -> Result<Self, Fault> {
        let listen = |kind| signal(kind).map_err(|error| Fault::failed(format!("cannot listen to signals: {error}")));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// All parts, running.
struct Up {
    router: Router,
    worker: Worker,
    membership: Arc<Membership>,
    ops: Ops,
    grace: Duration,
}

/// The endpoint of the worker in this process.
const IN_PROCESS: &str = "inprocess:local";

impl Up {
    /// Starts the ports first, so that a taken one is known at once, then the model.
    async fn start(args: &UpArgs, global: &Global) -> Result<Self, Fault> {
        let membership = Arc::new(Membership::new(Arc::new(MemoryStore::new())));
        let registries = [Registry::new(), Registry::new()];
        let (stage, _) = watch::channel(Stage::Loading);
        let worker = Arc::new(OnceLock::<Worker>::new());
        let connect: Connect = Arc::new({
            let worker = Arc::clone(&worker);
            move |endpoint| match worker.get().filter(|_| endpoint == IN_PROCESS) {
                Some(worker) => Ok(worker.in_process()),
                None => penstock_router::tcp(endpoint),
            }
        });
        let config = penstock_router::Config {
            http: args.http,
            insecure: args.insecure,
            deadline: args.deadline,
            grace: args.grace,
            ..penstock_router::Config::default()
        };
        let router = Router::start(config, membership.watch(), connect, &registries[0]).await.map_err(cannot_serve)?;
        let ops = start_ops(args.ops, &registries, router.status(), &stage).await?;

        let observers = Observers { registry: registries[1].clone(), stage, report: progress::bar(&args.model.word) };
        let loaded = Worker::load(&worker_config(args, global)?, &observers).await.map_err(cannot_load)?;
        let loaded = worker.get_or_init(|| loaded).clone();
        loaded.join(Arc::clone(&membership), IN_PROCESS).await.map_err(Fault::failed)?;
        router.status().ready().await;
        Ok(Self { router, worker: loaded, membership, ops, grace: args.grace })
    }

    /// Prints what is served and where, and tells whoever waits for the ready file.
    fn announce(&self, args: &UpArgs, took: Duration) -> Result<(), Fault> {
        let card = self.worker.card();
        let (http, ops) = (self.router.http_addr(), self.ops.address());
        output::line(&format!(
            "penstock {} serves {} ({}, {}, {:.1} M parameters, context {})",
            env!("CARGO_PKG_VERSION"),
            card.name,
            card.architecture,
            card.quantisation,
            card.parameters as f64 / 1e6,
            card.context_length,
        ))?;
        output::line(&format!("  openai   http://{http}/v1"))?;
        output::line(&format!("  metrics  http://{ops}/metrics"))?;
        output::line("try:")?;
        let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
        let body = json!({"model": card.name, "messages": messages});
        output::line(&format!("  curl -s http://{http}/v1/chat/completions -d '{body}'"))?;
        if let Some(file) = &args.ready_file {
            write_whole(file, &Addresses { http, ops })?;
        }
        output::line(&format!("ready in {:.1} s; Ctrl-C ends it", took.as_secs_f64()))
    }

    /// Finishes what is in flight, from the outside in.
    async fn end(self) {
        if !self.router.drain().await {
            tracing::warn!("the grace period is over: answers in flight were cut");
        }
        self.worker.shutdown().await;
        if let Some(membership) = Arc::into_inner(self.membership) {
            membership.close().await;
        }
        self.ops.drain(self.grace).await;
    }
}

/// What the ready file holds.
#[derive(Serialize)]
struct Addresses {
    http: SocketAddr,
    ops: SocketAddr,
}

/// Writes JSON by rename: whoever sees the file sees all of it.
fn write_whole(file: &Path, value: &impl Serialize) -> Result<(), Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::failed(format!("--ready-file {}: {error}", file.display()));
    let text = serde_json::to_string(value).map_err(|error| failed(&error))?;
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file)).map_err(|error| failed(&error))
}

async fn start_ops(
    address: SocketAddr,
    registries: &[Registry; 2],
    router: penstock_router::Status,
    stage: &watch::Sender<Stage>,
) -> Result<Ops, Fault> {
    let (registries, stage) = (registries.clone(), stage.subscribe());
    let readiness = move || {
        let mut readiness = router.readiness();
        let stage = *stage.borrow();
        if stage != Stage::Serving {
            readiness.reasons.push(format!("the worker is {stage}"));
        }
        readiness
    };
    let metrics = move || penstock_router::render(&registries);
    let sources = ops::Sources { metrics: Arc::new(metrics), readiness: Arc::new(readiness) };
    Ops::start(address, sources).await.map_err(Fault::failed)
}

fn worker_config(args: &UpArgs, global: &Global) -> Result<penstock_worker::Config, Fault> {
    let name = WorkerName::new("local").map_err(Fault::failed)?;
    let config = penstock_worker::Config::new(name, args.model.word.clone(), global.data_dir());
    Ok(penstock_worker::Config {
        served_name: args.model.name.clone(),
        threads: args.threads,
        kv: args.kv_memory,
        max_batch_tokens: args.max_batch_tokens,
        max_sequences: args.max_sequences,
        max_waiting: args.max_waiting,
        drain_timeout: args.grace,
        ..config
    })
}

fn cannot_serve(error: penstock_router::Error) -> Fault {
    match error {
        penstock_router::Error::Server(penstock_router::ServerError::Exposed { .. }) => Fault::bad_input(error),
        error => Fault::failed(error),
    }
}

fn cannot_load(error: worker::Error) -> Fault {
    match error {
        worker::Error::Artifact(_) | worker::Error::Model(_) | worker::Error::Load { .. } => Fault::bad_input(error),
        error => Fault::failed(error),
    }
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
