//! What limits and budgets are shared through: the store, the lease that this router's parts of them are bound to, and
//! whether the store is away. It knows nothing of limits and tenants.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::store::{self, LeaseId};
use tokio::time::{Instant, timeout};

/// How long the router's places outlive it: a router that nobody has heard of for so long has none.
const TTL: Duration = Duration::from_secs(10);
/// How long a request waits for the store before it is admitted without. A store that is well takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// The store, as one router leases limits from it.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(super) store: Arc<dyn Store>,
    router: String,
    lease: Mutex<Option<Held>>,
    granting: tokio::sync::Mutex<()>,
    away: AtomicBool,
    stopped: AtomicBool,
}

/// A lease and the time until which the store has it for sure.
#[derive(Debug, Clone, Copy)]
struct Held {
    lease: LeaseId,
    until: Instant,
}

impl Backing {
    pub(super) fn new(store: Arc<dyn Store>, router: &str) -> Self {
        Self {
            store,
            router: router.to_owned(),
            lease: Mutex::default(),
            granting: tokio::sync::Mutex::default(),
            away: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// The router's name.
    pub(crate) fn router(&self) -> &str {
        &self.router
    }

    /// The store itself, for calls within [`Backing::ask`] and for those that nobody waits for.
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Whether the store is away, as far as was seen.
    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// What the store answers; None where it is away, in which case nobody waits for it.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = Result<T, store::Error>>) -> Option<T> {
        if self.away.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire) {
            return None;
        }
        let reason = match timeout(PATIENCE, call).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        if !self.stopped.load(Ordering::Acquire) && !self.away.swap(true, Ordering::AcqRel) {
            tracing::warn!(reason, "the store is away: each router admits up to the whole of every limit by itself");
        }
        None
    }

    /// The router's lease, where it is sure to be there.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        let held = (*self.held())?;
        (Instant::now() < held.until).then_some(held.lease)
    }

    /// The router's lease; a new one where there is none, or the last may have ended.
    pub(crate) async fn granted(&self) -> Result<LeaseId, store::Error> {
        let _one = self.granting.lock().await;
        if let Some(lease) = self.lease() {
            return Ok(lease);
        }
        if self.stopped.load(Ordering::Acquire) {
            return Err(store::Error::Unavailable { reason: "this router is leaving".to_owned() });
        }
        let asked = Instant::now();
        let grant = self.store.grant(TTL).await?;
        *self.held() = Some(Held { lease: grant.lease, until: asked + grant.ttl });
        Ok(grant.lease)
    }

    /// What has to be done now and then: keeps the lease alive, and finds out whether the store is back.
    pub(super) async fn tend(&self) {
        let away = self.away.load(Ordering::Acquire);
        let held = *self.held();
        let asked = Instant::now();
        let answer = match held {
            Some(held) => match timeout(PATIENCE, self.store.keep_alive(held.lease)).await {
                Ok(Ok(ttl)) => {
                    self.kept(Held { until: asked + ttl, ..held });
                    true
                }
                Ok(Err(store::Error::LeaseNotFound { .. })) => {
                    self.forget(held.lease);
                    true
                }
                // Until its time is over the lease stands.
                Ok(Err(_)) | Err(_) => false,
            },
            None if away => matches!(timeout(PATIENCE, self.store.revision()).await, Ok(Ok(_))),
            None => return,
        };
        if answer && away {
            self.away.store(false, Ordering::Release);
            tracing::info!("the store is back: limits are shared by all routers again");
        }
    }

    /// Gives the lease back, and with it everything that is bound to it; from then on nothing more is leased.
    pub(super) async fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _one = self.granting.lock().await;
        let held = self.held().take();
        if let Some(held) = held {
            // What cannot be revoked ends by itself.
            match timeout(PATIENCE, self.store.revoke(held.lease)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the places of this router return only when its lease ends"),
                Err(_) => tracing::warn!("the places of this router return only when its lease ends"),
            }
        }
    }

    /// The lease has ended in the store, whatever was thought of it here.
    pub(crate) fn forget(&self, lease: LeaseId) {
        let mut held = self.held();
        if held.is_some_and(|held| held.lease == lease) {
            *held = None;
        }
    }

    fn kept(&self, kept: Held) {
        let mut held = self.held();
        if held.is_some_and(|held| held.lease == kept.lease) {
            *held = Some(kept);
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
