//! A worker's life: load → warm → join → serve → leave → finish → exit.

mod load;
mod member;
mod server;
mod tls;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use penstock_cluster::membership::{self, Membership};
use penstock_cluster::tls::ServerTls;
use penstock_engine::runner::{LoadError, ModelRunner};
use penstock_engine::{Engine, StartError, config as engine_config};
use penstock_proto::WorkerName;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{self, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic_health::server::HealthReporter;

use crate::artifact::{self, Report};
use crate::config::Config;
use crate::constraint::{Compiler, UnfitTokenizer};
use crate::metrics::Metrics;
use crate::model::{self, Card, Served};
use crate::rpc::{Drain, Service};

/// Where a worker stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The model's file is fetched and read.
    Loading,
    /// A first batch goes through the model.
    Warming,
    /// It can serve, and enters the cluster.
    Joining,
    /// It serves, and is a member.
    Serving,
    /// It leaves the cluster; whoever has not heard of it yet is still served.
    Leaving,
    /// It takes nothing new and finishes what it has.
    Finishing,
    /// Nothing runs any more.
    Exited,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Finishing => "finishing",
            Self::Exited => "exited",
        })
    }
}

/// Why a worker did not come to serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's file could not be had.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// The model's file cannot be served.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model does not fit, or its weights are broken.
    #[error("cannot load {model}: {source}")]
    Load {
        /// The model's name.
        model: String,
        /// Why.
        source: LoadError,
    },
    /// The first batch failed.
    #[error("the model does not run: {0}")]
    Warm(#[from] penstock_engine::runner::Error),
    /// No constraint could be compiled for the model.
    #[error(transparent)]
    Tokenizer(#[from] UnfitTokenizer),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// A metric is registered already.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The cluster does not take it.
    #[error(transparent)]
    Join(#[from] membership::Error),
    /// The gRPC server failed.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// What a worker is made of, once its model runs.
pub struct Parts {
    /// Its name in the cluster.
    pub name: WorkerName,
    /// The model's card and files.
    pub served: Served,
    /// What runs the model.
    pub runner: Box<dyn ModelRunner>,
    /// The engine's limits.
    pub engine: engine_config::Config,
    /// How long a leaving worker waits for what is in flight.
    pub drain_timeout: Duration,
}

/// Who watches a worker from its first moment on.
#[derive(Clone)]
pub struct Observers {
    /// Takes the worker's metrics.
    pub registry: Registry,
    /// Told where it stands; begins as [`Stage::Loading`].
    pub stage: watch::Sender<Stage>,
    /// Told of the model's pull.
    pub report: Report,
}

/// A worker whose model runs. Cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    name: WorkerName,
    served: Arc<Served>,
    constraints: Compiler,
    engine: Engine,
    drain: Drain,
    drain_timeout: Duration,
    stage: watch::Sender<Stage>,
    health: HealthReporter,
    /// Ends the membership.
    leave: CancellationToken,
    /// Ends the servers.
    stop: CancellationToken,
    tasks: TaskTracker,
    member: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Has the model's file, loads it, and sends a first batch through it.
    pub async fn load(config: &Config, observers: &Observers) -> Result<Self, Error> {
        let parts = Box::pin(load::load(config, observers)).await?;
        Self::start(parts, observers)
    }

    /// Starts the engine over a runner that works.
    pub fn start(parts: Parts, observers: &Observers) -> Result<Self, Error> {
        let Parts { name, served, runner, engine, drain_timeout } = parts;
        let constraints = served.constraints()?;
        let engine = Engine::start(engine, runner)?;
        Metrics::register(&observers.registry, engine.clone(), served.card.name.clone())?;
        let stage = observers.stage.clone();
        stage.send_replace(Stage::Joining);
        let inner = Inner {
            name,
            served: Arc::new(served),
            constraints,
            drain: Drain::new(engine.clone()),
            engine,
            drain_timeout,
            stage,
            health: HealthReporter::new(),
            leave: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            member: Mutex::new(None),
        };
        let worker = Self(Arc::new(inner));
        worker.0.tasks.spawn(server::tell_health(worker.0.clone()));
        Ok(worker)
    }

    /// What it serves.
    pub fn card(&self) -> &Card {
        &self.0.served.card
    }

    /// Its engine: load, counters, sizes.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        *self.0.stage.borrow()
    }

    /// Whether it takes new sequences and can do something about them.
    pub fn ready(&self) -> bool {
        self.stage() == Stage::Serving && !self.0.drain.is_on() && self.0.engine.failed().is_none()
    }

    /// Becomes a member that routers reach at `endpoint`, and stays one until [`Worker::shutdown`]: a lease that is
    /// lost is taken again.
    pub async fn join(&self, membership: Arc<Membership>, endpoint: impl Into<String>) -> Result<(), Error> {
        let holder = member::join(self.0.clone(), membership, endpoint.into()).await?;
        *self.0.member.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.0.tasks.spawn(holder));
        self.0.stage.send_replace(Stage::Serving);
        Ok(())
    }

    /// Serves on a socket until [`Worker::shutdown`], over TLS where it is given.
    pub async fn serve(&self, listener: TcpListener, tls: Option<ServerTls>) -> Result<(), Error> {
        Ok(Box::pin(server::serve(self.0.clone(), listener, tls)).await?)
    }

    /// A channel to this worker without a socket. It connects when it is first used, and again where a connection broke.
    pub fn in_process(&self) -> Channel {
        server::in_process(&self.0)
    }

    /// Takes nothing new; answers when nothing is in flight.
    pub async fn drain(&self) {
        self.0.drain.begin();
        self.0.engine.idle().await;
    }

    /// Takes new sequences again.
    pub fn undrain(&self) {
        self.0.drain.end();
    }

    /// Leaves the cluster, finishes what is in flight, or ends it when the drain timeout is over, and stops.
    pub async fn shutdown(&self) {
        let inner = &self.0;
        inner.stage.send_replace(Stage::Leaving);
        inner.leave.cancel();
        let member = inner.member.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(holder) = member
            && let Err(error) = holder.await
        {
            tracing::error!(%error, "leaving the cluster failed");
        }
        inner.stage.send_replace(Stage::Finishing);
        inner.drain.begin();
        if tokio::time::timeout(inner.drain_timeout, inner.engine.idle()).await.is_err() {
            tracing::warn!(
                seconds = inner.drain_timeout.as_secs(),
                "the drain timeout is over; ending what is in flight"
            );
        }
        let engine = inner.engine.clone();
        if let Err(error) = task::spawn_blocking(move || engine.shutdown()).await {
            tracing::error!(%error, "the engine did not stop");
        }
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.stage.send_replace(Stage::Exited);
    }
}

impl Inner {
    fn service(&self) -> Service {
        Service {
            served: self.served.clone(),
            constraints: self.constraints.clone(),
            engine: self.engine.clone(),
            drain: self.drain.clone(),
            stop: self.stop.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
