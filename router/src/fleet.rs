//! Who serves what: membership events → a [`Snapshot`] of models and their replicas. One task owns the members; everyone
//! else holds the latest snapshot. What a snapshot's holder does with it is its own matter: a replica that has left
//! serves on for those that are still using it.

mod keeper;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use penstock_cluster::MemberEvent;
use penstock_cluster::membership::PROTOCOL;
use penstock_proto::{ModelName, WorkerName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::metrics::{MemberState, Metrics};
use crate::prompt::ModelText;
use crate::replica::{Card, Causes, Replica};
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

/// How workers are reached over TCP. Pings on silent connections find one that vanished without a word.
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    /// What `https` endpoints are checked against, and who we are to them.
    pub tls: Option<ClientTlsConfig>,
    /// Takes `http` endpoints off loopback too, where anybody on the way reads along.
    pub insecure: bool,
}

impl Tcp {
    /// Opens channels this way.
    pub fn connect(self) -> Connect {
        Arc::new(move |endpoint| self.open(endpoint))
    }

    /// Opens a channel to an `http` or `https` endpoint.
    ///
    /// # Errors
    ///
    /// Where the endpoint is no address, or one that must not or cannot be used.
    pub fn open(&self, endpoint: &str) -> Result<Channel, ConnectError> {
        let refused = |reason: String| ConnectError { endpoint: endpoint.to_owned(), reason };
        let failed = |error: tonic::transport::Error| refused(Causes(&error).to_string());
        let open = Endpoint::from_shared(endpoint.to_owned()).map_err(failed)?;
        let host = open.uri().host().unwrap_or_default();
        let open = match (open.uri().scheme_str(), &self.tls) {
            (Some("http"), _) if self.insecure || is_loopback(host) => open,
            (Some("http"), _) => {
                let reason =
                    "a worker off loopback without TLS: give it --tls-cert and --tls-key, or the router --insecure";
                return Err(refused(reason.to_owned()));
            }
            (Some("https"), Some(tls)) => open.tls_config(tls.clone()).map_err(failed)?,
            (Some("https"), None) => return Err(refused("a worker with TLS: give the router --tls-ca".to_owned())),
            _ => return Err(refused("it starts with neither http:// nor https://".to_owned())),
        };
        Ok(open
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .initial_connection_window_size(WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_lazy())
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
    /// How long a new request waits for its first token, as the least busy of its open replicas predicts.
    pub(crate) fn wait_ms(&self) -> u64 {
        let open = self.replicas.iter().filter(|replica| replica.load().is_some());
        open.map(|replica| replica.wait_ms()).min().unwrap_or(u64::MAX)
    }

    /// Whether a replica takes requests.
    pub(crate) fn is_served(&self) -> bool {
        self.replicas.iter().any(|replica| replica.load().is_some())
    }
}

/// A worker as it is known now.
pub(crate) struct Known {
    pub(crate) endpoint: String,
    pub(crate) state: MemberState,
    /// What it announces.
    pub(crate) models: Vec<ModelName>,
    /// What the router has loaded of it, used or not.
    pub(crate) replicas: Vec<Arc<Replica>>,
    trouble: Trouble,
}

/// What keeps the router from using a worker.
enum Trouble {
    None,
    /// It speaks this version of the protocol.
    Protocol(u32),
    /// It has another file under a name that is served.
    Digest,
    /// How it broke the protocol.
    Lie(String),
    /// Why the last attempt to take it in failed.
    Loading(watch::Receiver<Option<String>>),
}

impl Known {
    /// Why the router cannot use it, for an operator.
    pub(crate) fn problem(&self) -> Option<String> {
        match &self.trouble {
            Trouble::None => None,
            Trouble::Protocol(theirs) => {
                Some(format!("it speaks protocol version {theirs} and this router {PROTOCOL}: update the older one"))
            }
            Trouble::Digest => {
                Some("it serves another file than the other workers under the same name: rename one".to_owned())
            }
            Trouble::Lie(lie) => Some(format!("it broke the protocol and gets no work until it joins again: {lie}")),
            Trouble::Loading(last) => last.borrow().clone(),
        }
    }
}

/// The models that are or were served and the workers that are there, by name.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub(crate) models: BTreeMap<ModelName, Arc<Model>>,
    pub(crate) workers: BTreeMap<WorkerName, Known>,
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

    /// Waits until the snapshot is another one than this handle has waited for. Never returns once the fleet has stopped.
    pub(crate) async fn changed(&mut self) {
        if self.snapshot.changed().await.is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plaintext_off_loopback_and_tls_without_authorities_are_refused_by_their_flags() {
        let reason = |tcp: &Tcp, endpoint: &str| tcp.open(endpoint).map(|_| ()).map_err(|error| error.reason);
        let plain = Tcp::default();
        for near in ["http://127.0.0.1:1", "http://127.9.9.9:1", "http://[::1]:1", "http://localhost:1"] {
            assert_eq!(reason(&plain, near), Ok(()));
        }
        for far in ["http://10.0.0.1:1", "http://worker:1", "http://[2001:db8::1]:1"] {
            assert!(reason(&plain, far).unwrap_err().contains("--insecure"), "{far}");
            assert_eq!(reason(&Tcp { insecure: true, ..Tcp::default() }, far), Ok(()));
        }
        assert!(reason(&plain, "https://127.0.0.1:1").unwrap_err().contains("--tls-ca"));
        assert!(reason(&plain, "ftp://127.0.0.1:1").unwrap_err().contains("http://"));
    }
}
