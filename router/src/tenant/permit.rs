//! Whether a tenant may ask once more: its requests and tokens of the minute and its places, counted across all routers.
//!
//! Nobody waits here for room: a request is admitted from what this router has in hand, after one round to the store, or
//! refused. What a request may then reach is decided elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::catalog::{Limits, Name};
use penstock_proto::ErrorCode;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::backing::Backing;
use super::rate::{Minute, Rate, Taken};
use super::slots::{Slot, Slots};
use crate::request::Failure;

/// How often the lease is kept alive and unused places are given back.
const TICK: Duration = Duration::from_secs(1);
/// Seconds after which a place may be free.
const PLACE_RETRY: u32 = 1;

/// The limits of all tenants, as one router takes from them.
///
/// While the store is away each router admits up to the whole of every limit by itself: a store's outage fails no
/// request, and k routers let at most k times the limit through.
pub struct Limiter {
    shared: Arc<Shared>,
    stop: CancellationToken,
    _stop_with_it: DropGuard,
}

struct Shared {
    backing: Arc<Backing>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    accounts: RwLock<HashMap<Name, Arc<Account>>>,
}

/// What one tenant has taken.
struct Account {
    tenant: Name,
    requests: Rate,
    tokens: Rate,
    slots: Slots,
    /// The limit of places that was last in force.
    concurrent: AtomicU64,
}

/// A request that was admitted; dropping it frees its place.
#[must_use = "the place is freed once this is dropped"]
pub struct Permit {
    /// None where the tenant has no limits.
    of: Option<Admitted>,
}

struct Admitted {
    shared: Arc<Shared>,
    account: Arc<Account>,
    tokens_per_minute: Option<u64>,
    _place: Option<Slot>,
}

/// Tokens that were reserved for a request. Dropping it leaves them spent; [`TokenHold::settle`] corrects them.
#[must_use = "what is reserved stays spent unless it is settled"]
pub struct TokenHold {
    of: Option<Reserved>,
}

struct Reserved {
    account: Arc<Account>,
    minute: Minute,
    amount: u64,
}

impl Limiter {
    /// The limits that all routers of a store share, for the router of that name. A task of `tasks` keeps its lease; it
    /// ends with [`Limiter::stop`], or with this.
    pub fn new(store: Arc<dyn Store>, router: &str, tasks: &TaskTracker) -> Self {
        Self::with_clock(store, router, tasks, Box::new(penstock_proto::time::unix_now))
    }

    fn with_clock(
        store: Arc<dyn Store>,
        router: &str,
        tasks: &TaskTracker,
        clock: Box<dyn Fn() -> Duration + Send + Sync>,
    ) -> Self {
        let shared =
            Arc::new(Shared { backing: Arc::new(Backing::new(store, router)), clock, accounts: RwLock::default() });
        let stop = CancellationToken::new();
        tasks.spawn({
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            async move {
                // Side by side, so that a lease is kept however many tenants have places to give back.
                let tend = async { tokio::join!(every(|| shared.backing.tend()), every(|| shared.give_back())) };
                stop.run_until_cancelled(tend).await;
                shared.backing.stop().await;
            }
        });
        Self { shared, _stop_with_it: stop.clone().drop_guard(), stop }
    }

    /// Takes one request of the tenant's minute, and one of its places.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::RateLimited`] where a limit is reached: which, and when there is more.
    pub async fn admit(&self, name: &Name, limits: &Limits) -> Result<Permit, Failure> {
        if *limits == Limits::default() {
            return Ok(Permit { of: None });
        }
        let shared = &self.shared;
        let account = shared.account(name);
        // The place first: one that is not to be had costs no request of the minute.
        let mut place = None;
        if let Some(limit) = limits.concurrent {
            let limit = u64::from(limit.get());
            account.concurrent.store(limit, Ordering::Relaxed);
            let taken = account.slots.take(&shared.backing, limit).await;
            place = Some(taken.ok_or_else(|| refused(account.full(limit), PLACE_RETRY))?);
        }
        if let Some(limit) = limits.requests_per_minute {
            let (now, limit) = ((shared.clock)(), u64::from(limit.get()));
            match account.requests.take(&shared.backing, Minute::of(now), (1, limit)).await {
                Taken::Granted(_) => {}
                Taken::Spent => return Err(refused(account.no_requests(limit), Minute::left(now))),
            }
        }
        let tokens_per_minute = limits.tokens_per_minute.map(std::num::NonZeroU64::get);
        let shared = Arc::clone(shared);
        Ok(Permit { of: Some(Admitted { shared, account, tokens_per_minute, _place: place }) })
    }

    /// What the limits are shared through, for budgets to be shared through it too. Its lease ends with [`Limiter::stop`].
    pub(crate) fn backing(&self) -> Arc<Backing> {
        Arc::clone(&self.shared.backing)
    }

    /// Gives everything that is leased back to the other routers; the task of this ends once that is done.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Permit {
    /// One that nothing limits.
    pub(crate) fn free() -> Self {
        Self { of: None }
    }

    /// Reserves tokens of the tenant's minute: as many as prompt and answer may have. A bound above the whole limit
    /// reserves the whole limit.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::RateLimited`] where fewer are left.
    pub async fn tokens(&self, bound: u64) -> Result<TokenHold, Failure> {
        let Some(Admitted { shared, account, tokens_per_minute: Some(limit), .. }) = &self.of else {
            return Ok(TokenHold { of: None });
        };
        let (now, amount) = ((shared.clock)(), bound.min(*limit));
        match account.tokens.take(&shared.backing, Minute::of(now), (amount, *limit)).await {
            Taken::Granted(minute) => {
                Ok(TokenHold { of: Some(Reserved { account: Arc::clone(account), minute, amount }) })
            }
            Taken::Spent => Err(refused(account.no_tokens(*limit, amount), Minute::left(now))),
        }
    }
}

impl TokenHold {
    /// Says how many tokens were used. What is left of the reserve may be taken again while the minute lasts; what was
    /// used beyond it counts too.
    pub fn settle(self, used: u64) {
        if let Some(Reserved { account, minute, amount }) = self.of {
            account.tokens.settle(minute, amount, used);
        }
    }
}

impl Shared {
    fn account(&self, name: &Name) -> Arc<Account> {
        if let Some(account) = self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(account);
        }
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(accounts.entry(name.clone()).or_insert_with(|| Arc::new(Account::new(name, self.backing.router()))))
    }

    async fn give_back(&self) {
        let accounts: Vec<Arc<Account>> =
            self.accounts.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for account in &accounts {
            account.slots.give_back(&self.backing, account.concurrent.load(Ordering::Relaxed)).await;
        }
        drop(accounts);
        let now = Minute::of((self.clock)());
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.idle(now));
    }
}

impl Account {
    fn new(tenant: &Name, router: &str) -> Self {
        let name = tenant.as_str();
        Self {
            tenant: tenant.clone(),
            requests: Rate::new(name, "requests"),
            tokens: Rate::new(name, "tokens"),
            slots: Slots::new(name, router),
            concurrent: AtomicU64::default(),
        }
    }

    fn idle(&self, now: Minute) -> bool {
        self.requests.idle(now) && self.tokens.idle(now) && self.slots.idle()
    }

    fn full(&self, limit: u64) -> String {
        format!("tenant {} has {limit} requests under way, which is its limit (concurrent)", self.tenant)
    }

    fn no_requests(&self, limit: u64) -> String {
        format!("tenant {} has sent its {limit} requests of this minute (requests_per_minute)", self.tenant)
    }

    fn no_tokens(&self, limit: u64, amount: u64) -> String {
        format!(
            "this request may take {amount} tokens, prompt and longest answer together, and tenant {} has fewer left of its \
             {limit} of this minute (tokens_per_minute)",
            self.tenant
        )
    }
}

fn refused(message: String, retry_after: u32) -> Failure {
    Failure { retry_after: Some(retry_after), ..Failure::new(ErrorCode::RateLimited, message) }
}

async fn every<F: Future<Output = ()>>(work: impl Fn() -> F) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        work().await;
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("router", &self.shared.backing.router()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.of.as_ref().map(|of| &of.account.tenant);
        f.debug_struct("Permit").field("tenant", &tenant).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenHold").field("amount", &self.of.as_ref().map(|of| of.amount)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
