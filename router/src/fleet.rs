//! Who serves what: membership events → a [`Snapshot`] of models and their replicas. One task owns the members; everyone
//! else holds the latest snapshot. What a snapshot's holder does with it is its own matter: a replica that has left
//! serves on for those that are still using it.

mod keeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use penstock_cluster::MemberEvent;
use penstock_proto::ModelName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use crate::metrics::Metrics;
use crate::prompt::ModelText;
use crate::replica::{Card, Replica};
use keeper::Keeper;

/// Opens the channel to a member's endpoint. It may connect later, at the first call.
pub type Connect = Arc<dyn Fn(&str) -> Result<Channel, ConnectError> + Send + Sync>;

/// An endpoint that cannot be connected to, whatever happens.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint:?}: {reason}")]
pub struct ConnectError {
    /// The endpoint.
    pub endpoint: String,
    /// Why not.
    pub reason: String,
}

/// What a worker's connection may have on its way, all its streams together: so much that streams whose clients have
/// stopped reading, of 64 KiB each, do not hold up the others.
const WINDOW: u32 = 64 << 20;

/// Connects over TCP. Pings on silent connections find a worker that vanished without a word.
pub fn tcp(endpoint: &str) -> Result<Channel, ConnectError> {
    let failed =
        |error: tonic::transport::Error| ConnectError { endpoint: endpoint.to_owned(), reason: error.to_string() };
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(failed)?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_lazy())
}

/// A model as it is served now.
pub(crate) struct Model {
    pub(crate) name: ModelName,
    pub(crate) card: Card,
    pub(crate) text: Arc<ModelText>,
    /// When the router first saw it, in seconds since 1970.
    pub(crate) created: u64,
    /// Empty while nobody serves a model that was served before.
    pub(crate) replicas: Vec<Arc<Replica>>,
}

impl Model {
    /// Whether a replica takes requests.
    pub(crate) fn is_served(&self) -> bool {
        self.replicas.iter().any(|replica| replica.load().is_some())
    }
}

/// The models that are or were served, by name.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub(crate) models: BTreeMap<ModelName, Arc<Model>>,
}

impl Snapshot {
    /// Those that are served.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().filter(|model| model.is_served())
    }
}

/// The handle to the fleet.
#[derive(Clone)]
pub(crate) struct Fleet {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Fleet {
    /// Follows `members` until stopped or until its last handle is dropped.
    pub(crate) fn start(
        members: impl Stream<Item = MemberEvent> + Send + 'static,
        connect: Connect,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (publish, snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let keeper = Keeper::new(connect, metrics, publish);
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeper.run(members)));
        Self { snapshot, tasks, stop }
    }

    /// The latest snapshot.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Whether a model is served.
    pub(crate) fn serves(&self) -> bool {
        self.snapshot.borrow().served().next().is_some()
    }

    /// Waits until a model is served. Never returns once the fleet has stopped without one.
    pub(crate) async fn ready(&self) {
        let served = |snapshot: &Arc<Snapshot>| snapshot.served().next().is_some();
        if self.snapshot.clone().wait_for(served).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Follows nobody any more.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
