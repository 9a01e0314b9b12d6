//! Holding a place: joining under a name, keeping the lease alive, leaving.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Epoch, Error, Member, MemberState};
use crate::backoff::Backoff;
use crate::store::{self, Entry, Expect, Grant, Key, LeaseId, Outcome, Store, Txn};

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// A worker that wants to join.
pub(super) struct Joining {
    pub(super) store: Arc<dyn Store>,
    pub(super) ttl: Duration,
    pub(super) key: Key,
    pub(super) member: Member,
}

/// Who has a name that we want, and until when we wait for its lease to end.
struct Holder {
    epoch: Epoch,
    patience: Instant,
}

impl Joining {
    pub(super) async fn run(self, tasks: &TaskTracker) -> Result<Lease, Error> {
        let mut backoff = BACKOFF;
        let mut granted = None;
        let mut holder = None;
        loop {
            match self.attempt(&mut granted, &mut holder).await {
                Ok(Some((grant, epoch))) => return Ok(self.joined(grant, epoch, tasks)),
                // Somebody has the name.
                Ok(None) => sleep(self.ttl / 16).await,
                Err(Error::Store(error)) if error.retryable() => {
                    tracing::warn!(name = %self.member.name, %error, "cannot join yet");
                    sleep(backoff.next()).await;
                }
                // A lease that was granted before an outage may have ended in it.
                Err(Error::Store(store::Error::LeaseNotFound { .. })) => granted = None,
                Err(error) => return Err(error),
            }
        }
    }

    /// One try; None where the name is still taken. A try whose outcome was lost is found again by its lease.
    async fn attempt(
        &self,
        granted: &mut Option<Grant>,
        holder: &mut Option<Holder>,
    ) -> Result<Option<(Grant, Epoch)>, Error> {
        if let Some(entry) = self.store.get(&self.key).await? {
            if let Some(grant) = granted
                && entry.lease == Some(grant.lease)
            {
                return Ok(Some((*grant, Epoch(entry.created))));
            }
            self.wait_for(&entry, holder)?;
            return Ok(None);
        }
        let grant = match granted {
            Some(grant) => *grant,
            None => *granted.insert(self.store.grant(self.ttl).await?),
        };
        let txn = Txn::new().expect(Expect::Absent(self.key.clone()));
        match self.store.commit(txn.put_leased(self.key.clone(), encode(&self.member), grant.lease)).await? {
            Outcome::Committed { revision, .. } => Ok(Some((grant, Epoch(revision)))),
            Outcome::Conflict { .. } => Ok(None),
        }
    }

    /// Refuses the name once its holder has outlived the lease of a dead one.
    fn wait_for(&self, entry: &Entry, holder: &mut Option<Holder>) -> Result<(), Error> {
        let epoch = Epoch(entry.created);
        let name = self.member.name.clone();
        let now = Instant::now();
        let first = holder.get_or_insert_with(|| {
            tracing::info!(%name, epoch = epoch.get(), "the name is taken; waiting for its lease to end");
            // Stores look for ended leases every so often.
            Holder { epoch, patience: now + self.ttl + Duration::from_secs(1) }
        });
        if first.epoch == epoch && now < first.patience {
            return Ok(());
        }
        let endpoint = match serde_json::from_slice::<Member>(&entry.value) {
            Ok(member) => member.endpoint,
            Err(_) => "an unknown address".to_owned(),
        };
        Err(Error::NameTaken { name, endpoint, epoch })
    }

    fn joined(self, grant: Grant, epoch: Epoch, tasks: &TaskTracker) -> Lease {
        let member = Member { epoch, ..self.member };
        tracing::info!(name = %member.name, epoch = epoch.get(), "joined");
        let (standing, held) = watch::channel(Standing::Held);
        let leave = CancellationToken::new();
        let keeper = Keeper {
            store: self.store.clone(),
            key: self.key.clone(),
            lease: grant.lease,
            epoch,
            ttl: grant.ttl,
            leave: leave.clone(),
            standing: standing.clone(),
        };
        tasks.spawn(keeper.run());
        Lease {
            store: self.store,
            key: self.key,
            lease: grant.lease,
            epoch,
            member: Mutex::new(member),
            standing,
            held,
            leave: leave.drop_guard(),
        }
    }
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Held,
    Lost,
    Left,
}

/// A place in the cluster. Dropping it leaves, in the background; [`Lease::leave`] waits for that.
///
/// A lease is lost when the store says so, not when the store is silent: through an outage its holder goes on serving.
/// Nothing that a holder writes through [`Lease::fence`] can be applied once another one has the name.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn Store>,
    key: Key,
    lease: LeaseId,
    epoch: Epoch,
    member: Mutex<Member>,
    standing: watch::Sender<Standing>,
    held: watch::Receiver<Standing>,
    leave: DropGuard,
}

impl Lease {
    /// Which holder of its name this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What a transaction expects so that it is applied only while this lease is held.
    pub fn fence(&self) -> Expect {
        Expect::Created(self.key.clone(), self.epoch.0)
    }

    /// Announces another state. Rides out outages of the store: bound the time from outside where that matters.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] where the lease has ended; nothing is written then.
    pub async fn update(&self, state: MemberState) -> Result<(), Error> {
        let mut member = self.member.lock().await;
        let next = Member { state, ..member.clone() };
        let txn = Txn::new().expect(self.fence()).put_leased(self.key.clone(), encode(&next), self.lease);
        let mut backoff = BACKOFF;
        loop {
            if *self.held.borrow() != Standing::Held {
                return Err(Error::Lost { name: next.name, epoch: self.epoch });
            }
            match self.store.commit(txn.clone()).await {
                Ok(Outcome::Committed { .. }) => break,
                Ok(Outcome::Conflict { .. }) | Err(store::Error::LeaseNotFound { .. }) => {
                    self.standing.send_replace(Standing::Lost);
                }
                // The same put again does no harm if the first one was applied.
                Err(error) if error.retryable() => {
                    tracing::warn!(name = %next.name, %error, "cannot announce the state yet");
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!(name = %next.name, ?state, "announced");
        *member = next;
        Ok(())
    }

    /// Waits until the lease is lost. To be a member again, join again.
    pub async fn lost(&self) {
        let mut held = self.held.clone();
        // The sender lives in `self`, so this cannot fail.
        let _ = held.wait_for(|standing| *standing == Standing::Lost).await;
    }

    /// Leaves, and waits until it is done; at most for one time to live, after which the lease has ended by itself.
    pub async fn leave(self) {
        let Self { leave, mut held, standing, .. } = self;
        drop(leave);
        // Only the keeper is left to say how it ended.
        drop(standing);
        let _ = held.wait_for(|standing| *standing != Standing::Held).await;
    }
}

/// Keeps a lease alive until it is told to leave, or the lease is lost.
struct Keeper {
    store: Arc<dyn Store>,
    key: Key,
    lease: LeaseId,
    epoch: Epoch,
    ttl: Duration,
    leave: CancellationToken,
    standing: watch::Sender<Standing>,
}

impl Keeper {
    async fn run(self) {
        let end = tokio::select! {
            () = self.leave.cancelled() => {
                self.revoke().await;
                Standing::Left
            }
            () = self.keep_alive() => Standing::Lost,
        };
        self.standing.send_replace(end);
    }

    /// Returns once the lease has ended.
    async fn keep_alive(&self) {
        let mut backoff = BACKOFF;
        let mut lost = self.standing.subscribe();
        let mut next = Instant::now() + self.ttl / 3;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                _ = lost.wait_for(|standing| *standing == Standing::Lost) => return,
            }
            match self.beat().await {
                Ok(true) => {
                    backoff.reset();
                    next = Instant::now() + self.ttl / 3;
                }
                Ok(false) | Err(store::Error::LeaseNotFound { .. }) => {
                    tracing::warn!(key = %self.key, epoch = self.epoch.get(), "the membership is lost");
                    return;
                }
                // Whatever else it is may pass: the lease is held until the store says that it is not.
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the lease alive");
                    next = Instant::now() + backoff.next();
                }
            }
        }
    }

    /// One sign of life; says whether the document is still there, which an operator may have deleted.
    async fn beat(&self) -> Result<bool, store::Error> {
        self.store.keep_alive(self.lease).await?;
        let entry = self.store.get(&self.key).await?;
        Ok(entry.is_some_and(|entry| Epoch(entry.created) == self.epoch))
    }

    async fn revoke(&self) {
        let mut backoff = BACKOFF;
        let revoked = async {
            while let Err(error) = self.store.revoke(self.lease).await
                && error.retryable()
            {
                sleep(backoff.next()).await;
            }
        };
        if timeout(self.ttl, revoked).await.is_err() {
            tracing::warn!("the store is away; the lease ends by itself");
        }
    }
}

fn encode(member: &Member) -> Vec<u8> {
    serde_json::to_vec(member).expect("a member has only strings as keys")
}
