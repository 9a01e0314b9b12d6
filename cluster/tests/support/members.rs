//! Workers that join, and a router's view of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use penstock_cluster::Membership;
use penstock_cluster::membership::{Lease, Member, MemberEvent, MemberState, Members, PROTOCOL, ServedModel};
use penstock_cluster::store::Store;
use penstock_proto::{ModelName, WorkerName};
use tokio::time::{Instant, timeout_at};

use crate::link::Link;

pub(crate) fn name(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

pub(crate) fn member(worker: &str) -> Member {
    Member {
        name: name(worker),
        endpoint: format!("http://{worker}:50051"),
        models: vec![ServedModel { name: ModelName::new("m").unwrap(), digest: "d".to_owned() }],
        state: MemberState::Ready,
        protocol: PROTOCOL,
        epoch: Default::default(),
    }
}

/// A worker with its own link to the store.
pub(crate) struct Worker {
    pub(crate) link: Link,
    pub(crate) membership: Membership,
}

impl Worker {
    pub(crate) fn new(store: Arc<dyn Store>, ttl: Duration) -> Self {
        let link = Link::to(store);
        Self { membership: Membership::with_ttl(Arc::new(link.clone()), ttl), link }
    }

    pub(crate) async fn join(&self, worker: &str) -> Lease {
        self.membership.join(member(worker)).await.unwrap()
    }
}

/// A worker as its process would run it: it joins, and joins again whenever it has lost its lease.
pub(crate) async fn serve(worker: Arc<Worker>, who: &'static str) {
    loop {
        let lease = worker.join(who).await;
        lease.lost().await;
    }
}

/// What a router sees.
pub(crate) struct Router {
    pub(crate) members: Members,
    /// As the events tell it.
    pub(crate) view: BTreeMap<WorkerName, Member>,
}

impl Router {
    /// Watches, and takes in what is there.
    pub(crate) async fn watching(membership: &Membership) -> Self {
        let mut router = Self { members: membership.watch(), view: BTreeMap::new() };
        while router.next().await != MemberEvent::Synced {}
        router
    }

    /// The next event, which must fit to those before it.
    pub(crate) async fn next(&mut self) -> MemberEvent {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, self.take()).await.expect("no event")
    }

    /// The events until a moment, without those that only say that all is in.
    pub(crate) async fn until(&mut self, moment: Instant) -> Vec<MemberEvent> {
        let mut events = Vec::new();
        while let Ok(event) = timeout_at(moment, self.take()).await {
            events.push(event);
        }
        events.retain(|event| *event != MemberEvent::Synced);
        events
    }

    pub(crate) async fn during(&mut self, time: Duration) -> Vec<MemberEvent> {
        self.until(Instant::now() + time).await
    }

    async fn take(&mut self) -> MemberEvent {
        let event = self.members.next().await.expect("a watch does not end");
        match &event {
            MemberEvent::Joined(member) => {
                assert_eq!(self.view.insert(member.name.clone(), member.clone()), None, "it was there");
            }
            MemberEvent::Changed(member) => {
                let before = self.view.insert(member.name.clone(), member.clone()).expect("it was not there");
                assert_ne!(before, *member, "nothing changed");
            }
            MemberEvent::Left(name) => assert!(self.view.remove(name).is_some(), "it was not there"),
            MemberEvent::Synced => {}
        }
        event
    }
}
