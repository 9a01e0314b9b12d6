//! What tenants' external calls may cost, in a day or a month, across all routers. Each router leases slices of a budget
//! through the store and spends from what it has in hand: an amount is reserved before a call and settled after it.
//!
//! What is settled, together with every slice, never exceeds the cap: see `docs/adr/0019-budgets.md` for what a router
//! that is killed, or that the store has given up, may have had in the air. What a call costs is decided by its price in
//! the catalogue; who may be called, by policy.

mod account;
mod charge;
mod period;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use penstock_cluster::catalog::{Budget, Period, Price, Usd};
use penstock_cluster::store;
use penstock_proto::{ErrorCode, RequestId};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::policy::Purse;
use crate::request::{Failure, Usage};
use crate::tenant::Backing;
use account::{Account, Standing};
use charge::State;
use period::Span;

pub(crate) use account::Reservation;
pub(crate) use charge::Charge;

/// How often what was settled is written down, and what is not needed goes back.
const TICK: Duration = Duration::from_secs(1);
/// Budgets that are written down at once.
const AT_ONCE: usize = 16;

/// The budgets of all tenants, as one router spends them.
pub(crate) struct Budgets {
    shared: Arc<Shared>,
    stop: CancellationToken,
    _stop_with_it: DropGuard,
}

type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

struct Shared {
    backing: Arc<Backing>,
    metrics: Arc<Metrics>,
    clock: Clock,
    accounts: RwLock<HashMap<(String, Span), Arc<Account>>>,
}

/// A call that somebody is to pay for.
#[derive(Debug, Clone)]
pub(crate) struct Bill<'a> {
    pub(crate) tenant: &'a str,
    /// None where nothing bounds what the tenant spends.
    pub(crate) budget: Option<&'a Budget>,
    /// None where the catalogue has none.
    pub(crate) price: Option<Price>,
    pub(crate) target: String,
    /// The most tokens that it may take.
    pub(crate) bound: Usage,
}

/// A budget does not cover a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this call may cost {} USD, and tenant {tenant} has less left of its {} USD a {}{}",
    usd(*.nanos), usd(*.cap), word(*.period), if *.away { ", as far as this router can know while the store is away" } else { "" }
)]
pub(crate) struct Spent {
    tenant: String,
    nanos: u64,
    cap: u64,
    period: Period,
    /// The store could not be asked for more.
    away: bool,
}

impl From<Spent> for Failure {
    fn from(spent: Spent) -> Self {
        Self::new(ErrorCode::PolicyBudget, spent.to_string())
    }
}

/// How a budget stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    /// The day or the month: `2026-11-25`, `2026-11`.
    pub(crate) span: String,
    pub(crate) spent: Usd,
    /// What calls under way may still cost.
    pub(crate) reserved: Usd,
    pub(crate) left: Usd,
}

impl Budgets {
    /// The budgets that all routers share through `backing`'s store. A task of `tasks` writes down what was spent; it ends
    /// with [`Budgets::close`], or with this.
    pub(crate) fn new(backing: Arc<Backing>, metrics: Arc<Metrics>, tasks: &TaskTracker) -> Self {
        Self::with_clock(backing, metrics, tasks, Box::new(penstock_proto::time::unix_now))
    }

    fn with_clock(backing: Arc<Backing>, metrics: Arc<Metrics>, tasks: &TaskTracker, clock: Clock) -> Self {
        let shared = Arc::new(Shared { backing, metrics, clock, accounts: RwLock::default() });
        let stop = CancellationToken::new();
        tasks.spawn({
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            async move {
                stop.run_until_cancelled(shared.tend_for_ever()).await;
            }
        });
        Self { shared, _stop_with_it: stop.clone().drop_guard(), stop }
    }

    /// Reserves an amount of a tenant's budget, in nano-dollars.
    ///
    /// # Errors
    ///
    /// [`Spent`] where there is less left, or no more can be had while the store is away.
    pub(crate) async fn reserve(&self, tenant: &str, budget: &Budget, nanos: u64) -> Result<Reservation, Spent> {
        let (backing, cap) = (&self.shared.backing, budget.usd.nanos());
        let account = self.shared.account(tenant, budget.period);
        if account.reserve(backing, nanos, cap).await {
            return Ok(Reservation::new(account, nanos));
        }
        Err(Spent { tenant: tenant.to_owned(), nanos, cap, period: budget.period, away: backing.is_away() })
    }

    /// Reserves what a call may cost at most.
    ///
    /// # Errors
    ///
    /// As of [`Budgets::reserve`]. A call without a price is never covered.
    pub(crate) async fn charge(&self, bill: Bill<'_>) -> Result<Charge, Spent> {
        let Bill { tenant, budget, price, target, bound } = bill;
        let reservation = match budget {
            None => None,
            Some(budget) => {
                let most = price.map_or(u64::MAX, |price| charge::most(&price, bound));
                Some(self.reserve(tenant, budget, most).await?)
            }
        };
        let (tenant, metrics) = (tenant.to_owned(), Arc::clone(&self.shared.metrics));
        Ok(Charge { reservation, price, bound, tenant, target, metrics, state: State::Reserved, received: 0 })
    }

    /// What a tenant can still reserve, for decisions.
    pub(crate) fn purse(&self, tenant: &str, budget: Option<&Budget>) -> Purse {
        let Some(budget) = budget else { return Purse::Unbounded };
        let account = self.shared.account(tenant, budget.period);
        let left = account.left(&self.shared.backing, budget.usd.nanos());
        Purse::Budget { left: left.map(Usd::from_nanos), when_spent: budget.when_spent }
    }

    /// How a tenant's budget stands, on all routers.
    pub(crate) async fn statement(&self, tenant: &str, budget: &Budget) -> Result<Statement, store::Error> {
        let span = Span::of(budget.period, (self.shared.clock)());
        let Standing { spent, reserved } =
            self.shared.account(tenant, budget.period).standing(&self.shared.backing).await?;
        let left = budget.usd.nanos().saturating_sub(spent).saturating_sub(reserved);
        let [spent, reserved, left] = [spent, reserved, left].map(Usd::from_nanos);
        Ok(Statement { span: span.to_string(), spent, reserved, left })
    }

    /// Writes down everything that was spent; what calls under way may still cost counts as spent, and nothing more can be.
    /// To be called before the backing stops.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        let shared = &self.shared;
        let closed = stream::iter(shared.all()).map(|(_, account)| async move { account.close(&shared.backing).await });
        let lost = closed.buffer_unordered(AT_ONCE).filter(|closed| std::future::ready(!closed)).count().await;
        if lost > 0 {
            tracing::warn!(budgets = lost, "what was spent in the last second of budgets was not written down");
        }
    }
}

impl Shared {
    async fn tend_for_ever(&self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tend().await;
        }
    }

    async fn tend(&self) {
        let accounts = stream::iter(self.all());
        let each = accounts.for_each_concurrent(AT_ONCE, async |((tenant, span), account)| {
            let is_over = span != self.span_now(span);
            if let Some(committed) = account.tend(&self.backing, is_over).await
                && !is_over
            {
                self.metrics.budget_left(&tenant, account.cap().saturating_sub(committed));
            }
        });
        each.await;
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_done());
    }

    fn all(&self) -> Vec<((String, Span), Arc<Account>)> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.iter().map(|(key, account)| (key.clone(), Arc::clone(account))).collect()
    }

    fn account(&self, tenant: &str, period: Period) -> Arc<Account> {
        let key = (tenant.to_owned(), Span::of(period, (self.clock)()));
        if let Some(account) = self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(account);
        }
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let span = key.1;
        let new = || {
            // Of a name's its own: what a former life of this router has in the store is not this one's to change.
            let instance = format!("{}:{}", self.backing.router(), RequestId::generate());
            Arc::new(Account::new(tenant, span, &instance))
        };
        Arc::clone(accounts.entry(key).or_insert_with(new))
    }

    /// The span of the same kind that it is now.
    fn span_now(&self, span: Span) -> Span {
        let period = match span {
            Span::Day(_) => Period::Day,
            Span::Month(_) => Period::Month,
        };
        Span::of(period, (self.clock)())
    }
}

/// An amount in dollars, as people write it.
pub(crate) fn usd(nanos: u64) -> String {
    let (dollars, part) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let part = format!("{part:09}");
    // Cents are always told.
    format!("{dollars}.{}{}", &part[..2], part[2..].trim_end_matches('0'))
}

pub(crate) fn word(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Month => "month",
    }
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgets").field("router", &self.shared.backing.router()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
