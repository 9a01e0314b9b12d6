//! `penstock up`: router, worker and cluster state in one process.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use penstock_cluster::Membership;
use penstock_cluster::store::{self, MemoryStore};
use penstock_proto::WorkerName;
use penstock_router::{Connect, Ops, Router, Tcp};
use penstock_worker::{Stage, Worker};
use prometheus::Registry;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::process::{Ends, start_ops, write_ready_file};
use crate::router::{self, Addresses, FrontArgs, cannot_serve};
use crate::rules::RulesArgs;
use crate::tls::IdentityArgs;
use crate::worker::{self, EngineArgs};
use crate::{Global, output};

const EXAMPLES: &str = "\
Examples:
  penstock up
  penstock up --model assistant=/mnt/models/assistant.Q8_0.gguf --http 127.0.0.1:9000
  penstock up --kv-memory 4GiB --max-sequences 32
  penstock up --config bank.yaml

It ends on SIGTERM or Ctrl-C: no new work, what is in flight finishes, exit code 0. A second one ends it at once.";

/// The flags of `penstock up`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    front: FrontArgs,
    #[command(flatten)]
    rules: RulesArgs,
    #[command(flatten)]
    tls: IdentityArgs,
    #[command(flatten)]
    engine: EngineArgs,
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
    ends.finish(up.end(args.front.grace)).await
}

/// All parts, running.
struct Up {
    router: Router,
    scheme: &'static str,
    worker: Worker,
    membership: Arc<Membership>,
    ops: Ops,
}

/// What lasts beyond the process: the catalogue and what was issued, in the data directory. Members do not.
async fn open(global: &Global) -> Result<MemoryStore, Fault> {
    MemoryStore::open(global.data_dir().join("state")).await.map_err(|error| match error {
        store::Error::InUse { .. } => {
            Fault::failed(format!("{error}: one `penstock up` has a --data-dir for itself; give this one another"))
        }
        error => Fault::failed(error),
    })
}

/// The endpoint of the worker in this process.
const IN_PROCESS: &str = "inprocess:local";

impl Up {
    /// Starts the ports first, so that a taken one is known at once, then the model.
    async fn start(args: &UpArgs, global: &Global) -> Result<Self, Fault> {
        let membership = Arc::new(Membership::new(Arc::new(open(global).await?)));
        let registries = [Registry::new(), Registry::new()];
        let local = Arc::new(OnceLock::<Worker>::new());
        let connect: Connect = Arc::new({
            let local = Arc::clone(&local);
            move |endpoint| match local.get().filter(|_| endpoint == IN_PROCESS) {
                Some(worker) => Ok(worker.in_process()),
                None => Tcp::default().open(endpoint),
            }
        });
        let config = args.front.config(&args.tls)?;
        let config = args.rules.enforce(membership.store(), "--config", config).await?;
        let (scheme, key) = (router::scheme(&config), router::admin_key(global)?);
        let cluster = router::cluster(&membership, connect);
        let router = Router::start(config, key, cluster, &registries[0]).await.map_err(cannot_serve)?;
        let (stage, watched) = watch::channel(Stage::Loading);
        let status = router.status();
        let readiness = move || {
            let mut readiness = status.readiness();
            readiness.reasons.extend(worker::readiness(*watched.borrow()).reasons);
            readiness
        };
        let ops = start_ops(args.front.ops, registries.to_vec(), readiness).await?;

        let name = WorkerName::new("local").map_err(Fault::failed)?;
        let [_, registry] = registries;
        let loaded = args.engine.load(name, args.front.grace, global, (registry, stage)).await?;
        let worker = local.get_or_init(|| loaded).clone();
        worker.join(Arc::clone(&membership), IN_PROCESS).await.map_err(Fault::failed)?;
        router.status().ready().await;
        Ok(Self { router, scheme, worker, membership, ops })
    }

    /// Prints what is served and where, and tells whoever waits for the ready file.
    fn announce(&self, args: &UpArgs, took: Duration) -> Result<(), Fault> {
        let addresses = Addresses::of(&self.router, self.ops.address());
        output::line(&format!("penstock {} serves {}", env!("CARGO_PKG_VERSION"), worker::about(&self.worker)))?;
        addresses.announce(self.scheme)?;
        output::line("try:")?;
        let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
        let body = json!({"model": self.worker.card().name, "messages": messages});
        output::line(&format!("  curl -s {}://{}/v1/chat/completions -d '{body}'", self.scheme, addresses.http))?;
        write_ready_file(args.front.ready_file.as_deref(), &addresses)?;
        output::line(&format!("ready in {:.1} s; Ctrl-C ends it", took.as_secs_f64()))
    }

    /// Finishes what is in flight, from the outside in.
    async fn end(self, grace: Duration) {
        if !self.router.drain().await {
            tracing::warn!("the grace period is over: answers in flight were cut");
        }
        self.worker.shutdown().await;
        if let Some(membership) = Arc::into_inner(self.membership) {
            membership.close().await;
        }
        self.ops.drain(grace).await;
    }
}
