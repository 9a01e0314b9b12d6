//! Who is in the cluster: workers join under their name with a lease, routers watch them come and go.
//!
//! A member is one JSON document under `/penstock/v1/members/NAME`, bound to a lease. Its epoch, the store's revision
//! when it joined, orders the holders of one name. What a router does with its members is its own matter.

mod keeper;
mod view;
mod watcher;

use std::sync::Arc;
use std::time::Duration;

use penstock_proto::{ModelName, WorkerName};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::store::{self, Prefix, Revision, Store};

pub use keeper::Lease;
pub use watcher::{Freshness, Members};

/// The version of the protocol between routers and workers that this build speaks.
pub const PROTOCOL: u32 = 1;

/// How long a member that gives no sign of life stays one.
pub const LEASE_TTL: Duration = Duration::from_secs(10);

const PREFIX: &str = "/penstock/v1/members/";

/// One worker, as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name; only one worker holds it at a time.
    pub name: WorkerName,
    /// Where routers reach it, as an `http://` or `https://` address.
    pub endpoint: String,
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// Whether it takes work.
    pub state: MemberState,
    /// The protocol version that it speaks; see [`PROTOCOL`].
    pub protocol: u32,
    /// Which holder of the name it is: given by [`Membership::join`], whatever stood here before.
    #[serde(skip)]
    pub epoch: Epoch,
}

/// A model that a member serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// Its name.
    pub name: ModelName,
    /// The digest of its files.
    pub digest: String,
}

/// Where a member stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It is there, and does not take work yet.
    Loading,
    /// It takes work.
    Ready,
    /// It finishes what it has, and takes nothing new.
    Draining,
}

/// Which holder of a name a member is: the store's revision at its joining. A later holder has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(Revision);

impl From<Revision> for Epoch {
    fn from(revision: Revision) -> Self {
        Self(revision)
    }
}

impl Epoch {
    /// The number.
    pub fn get(self) -> i64 {
        self.0.get()
    }
}

/// What happened to the members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// A worker is there that was not.
    Joined(Member),
    /// A member is not what it was: another state, other models, or another holder of the name (its epoch tells).
    Changed(Member),
    /// A member is gone: it left, or its lease ended.
    Left(WorkerName),
    /// The events so far add up to the store's state: at the start, and again after an outage or a compaction.
    Synced,
}

/// What can go wrong with a membership.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another worker, which is alive, has the name.
    #[error("the name {name} is taken by the worker at {endpoint} (epoch {})", epoch.get())]
    NameTaken {
        /// The name.
        name: WorkerName,
        /// Where its holder is reached.
        endpoint: String,
        /// The holder's epoch.
        epoch: Epoch,
    },
    /// The lease has ended; another worker may have the name.
    #[error("{name} has lost its lease (epoch {})", epoch.get())]
    Lost {
        /// The name.
        name: WorkerName,
        /// The epoch that is over.
        epoch: Epoch,
    },
    /// The store failed in a way that does not pass by itself.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The way into a cluster, for those who join it and those who watch it.
#[derive(Debug)]
pub struct Membership {
    store: Arc<dyn Store>,
    ttl: Duration,
    tasks: TaskTracker,
}

impl Membership {
    /// The membership kept in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with_ttl(store, LEASE_TTL)
    }

    /// The same with another time to live for leases (whole seconds; etcd grants no less than 2). Everybody in a
    /// cluster should have the same one: a watch takes it as the grace of members after an outage.
    pub fn with_ttl(store: Arc<dyn Store>, ttl: Duration) -> Self {
        Self { store, ttl, tasks: TaskTracker::new() }
    }

    /// Where the membership is kept.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Joins as a member, and stays one until the [`Lease`] is dropped or lost. Rides out outages of the store: bound
    /// the time from outside where that matters.
    ///
    /// # Errors
    ///
    /// [`Error::NameTaken`], after a wait of one time to live: the lease of a holder that is dead has ended by then.
    pub async fn join(&self, member: Member) -> Result<Lease, Error> {
        let key = prefix().key(member.name.as_str());
        keeper::Joining { store: self.store.clone(), ttl: self.ttl, key, member }.run(&self.tasks).await
    }

    /// Follows the members. What is there now comes first, then [`MemberEvent::Synced`], then what changes. See
    /// [`Members`].
    pub fn watch(&self) -> Members {
        watcher::watch(self.store.clone(), prefix(), self.ttl, &self.tasks)
    }

    /// Waits until every lease that was dropped has left, and every watch that was dropped has ended.
    pub async fn close(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn prefix() -> Prefix {
    Prefix::new(PREFIX)
}
