//! Who of one class starts next: the tenant that was served least, and of one tenant whoever came first.
//!
//! Virtual token counters: Sheng et al., "Fairness in serving large language models", OSDI 2024. A tenant that had
//! nobody waiting is lifted to where the line stands, so that idleness saves up nothing. Between two tenants that both
//! always have someone waiting, the counters differ by no more than what those who run can take at once.

use std::collections::{BTreeMap, VecDeque};

use crate::handle::Tenant;
use crate::sequence::SequenceId;

/// What a drawn token counts for, beside 1 for a token that is read.
pub(crate) const DRAWN: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Line {
    tenants: BTreeMap<Tenant, Account>,
    /// What the tenant that was last chosen had been served.
    stands_at: u64,
}

#[derive(Debug, Default)]
struct Account {
    served: u64,
    /// Its sequences of this class that have not ended.
    sequences: usize,
    /// Those before their first start, as they came.
    waiting: VecDeque<SequenceId>,
    /// How many of them the present step has passed over.
    passed: usize,
}

impl Account {
    fn next(&self) -> Option<SequenceId> {
        self.waiting.get(self.passed).copied()
    }
}

impl Line {
    /// Puts a new sequence behind those of its tenant.
    pub(crate) fn enter(&mut self, tenant: &Tenant, id: SequenceId) {
        let account = self.tenants.entry(tenant.clone()).or_default();
        if account.waiting.is_empty() {
            account.served = account.served.max(self.stands_at);
        }
        account.sequences += 1;
        account.waiting.push_back(id);
    }

    /// A sequence of the tenant has ended, waiting or not.
    pub(crate) fn leave(&mut self, tenant: &Tenant, id: SequenceId) {
        let account = self.tenants.get_mut(tenant).expect("who leaves has entered");
        account.sequences -= 1;
        account.waiting.retain(|other| *other != id);
        if self.tenants.values().all(|account| account.sequences == 0) {
            // Nobody is owed anything.
            *self = Self::default();
        } else {
            // Who has had no more than the others would be lifted anyway.
            let stands_at = self.stands_at;
            self.tenants.retain(|_, account| account.sequences > 0 || account.served > stands_at);
        }
    }

    /// Begins a new choice among all who wait.
    pub(crate) fn rewind(&mut self) {
        self.tenants.values_mut().for_each(|account| account.passed = 0);
    }

    /// Who is next of those that were not passed over.
    pub(crate) fn next(&self) -> Option<SequenceId> {
        let waiting = self.tenants.values().filter_map(|account| Some((account.served, account.next()?)));
        waiting.min().map(|(_, id)| id)
    }

    /// Looks past the next one of the tenant until the next choice begins.
    pub(crate) fn pass(&mut self, tenant: &Tenant) {
        self.account(tenant).passed += 1;
    }

    /// The next one of the tenant starts and is going to read `tokens`.
    pub(crate) fn start(&mut self, tenant: &Tenant, tokens: usize) {
        let account = self.account(tenant);
        let (at, served) = (account.passed, account.served);
        account.waiting.remove(at);
        account.served += tokens as u64;
        self.stands_at = self.stands_at.max(served);
    }

    /// Counts a token that was drawn for the tenant.
    pub(crate) fn draw(&mut self, tenant: &Tenant) {
        self.account(tenant).served += DRAWN;
    }

    /// What the tenant has been served, if it has sequences here.
    #[cfg(test)]
    pub(crate) fn served(&self, tenant: &Tenant) -> Option<u64> {
        self.tenants.get(tenant).map(|account| account.served)
    }

    fn account(&mut self, tenant: &Tenant) -> &mut Account {
        self.tenants.get_mut(tenant).expect("a tenant with sequences has an account")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Priority;

    fn tenant(name: &str) -> Tenant {
        Tenant(name.into())
    }

    fn id(arrival: u64) -> SequenceId {
        SequenceId { priority: Priority::Batch, arrival }
    }

    #[test]
    fn the_least_served_is_next_and_of_one_tenant_the_first() {
        let mut line = Line::default();
        let (a, b) = (tenant("a"), tenant("b"));
        (0..3).for_each(|arrival| line.enter(&a, id(arrival)));
        line.enter(&b, id(3));
        assert_eq!(line.next(), Some(id(0)));
        line.start(&a, 10);
        assert_eq!(line.next(), Some(id(3)));
        line.start(&b, 4);
        (0..2).for_each(|_| line.draw(&b));
        assert_eq!((line.served(&a), line.served(&b), line.next()), (Some(10), Some(8), Some(id(1))));
        line.pass(&a);
        assert_eq!(line.next(), Some(id(2)));
        line.pass(&a);
        assert_eq!(line.next(), None);
        line.rewind();
        assert_eq!(line.next(), Some(id(1)));
    }

    #[test]
    fn idleness_saves_up_nothing_and_what_was_taken_stays_taken() {
        let mut line = Line::default();
        let (busy, late, greedy) = (tenant("busy"), tenant("late"), tenant("greedy"));
        line.enter(&greedy, id(0));
        (1..4).for_each(|arrival| line.enter(&busy, id(arrival)));
        line.start(&greedy, 900);
        line.start(&busy, 100);
        line.start(&busy, 100);
        line.enter(&late, id(9));
        assert_eq!((line.served(&late), line.next()), (Some(100), Some(id(9))));
        line.leave(&greedy, id(0));
        line.enter(&greedy, id(10));
        assert_eq!(line.served(&greedy), Some(900));
        for (tenant, arrival) in [(&greedy, 10), (&late, 9), (&busy, 1), (&busy, 2), (&busy, 3)] {
            line.leave(tenant, id(arrival));
        }
        assert_eq!(line.served(&greedy), None);
    }
}
