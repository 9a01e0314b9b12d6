//! Nobody starves: not a tenant beside a greedy one, not batch work behind interactive work.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Two tenants who always have someone waiting: what they were served differs by no more than what can run at once.
    #[test]
    fn two_tenants_with_a_backlog_are_served_alike(
        sizes in prop::collection::vec((0usize..2, 1usize..150, 1usize..60), 60..200),
        seats in 1usize..6,
    ) {
        let mut reference = Reference::with(64, seats, 24);
        for (family, (tenant, prompt, outputs)) in sizes.into_iter().enumerate() {
            let priority = Priority::Interactive;
            reference.submit(Spec { priority, tenant, family, prompt, outputs, patience: 1000 });
        }
        let backlog = |reference: &Reference, tenant| {
            let all = reference.scheduler.sequences.values();
            all.filter(|sequence| sequence.turn.is_none()).any(|one| reference.specs[&one.id].tenant == tenant)
        };
        // The counters of two who start differ by one start; what was started and is still to be read or drawn, and what
        // preemptions have them read again, are beside that.
        let bound = (150 + seats * (150 + 60 * line::DRAWN as usize)) as u64;
        while backlog(&reference, 0) && backlog(&reference, 1) {
            reference.step();
            let served = |tenant| reference.served.get(&tenant).copied().unwrap_or(0);
            prop_assert!(served(0).abs_diff(served(1)) <= bound, "{} and {}, bound {bound}", served(0), served(1));
        }
        reference.finish();
        reference.close();
    }
}

/// Keeps `waiting` interactive sequences in line, whatever ends.
fn press(reference: &mut Reference, waiting: usize) {
    while reference.states(State::Waiting).iter().filter(|id| id.priority == Priority::Interactive).count() < waiting {
        let family = reference.arrivals as usize;
        reference.submit(Spec {
            priority: Priority::Interactive,
            tenant: 0,
            family,
            prompt: 90,
            outputs: 20,
            patience: 100_000,
        });
    }
}

#[test]
fn steady_interactive_work_leaves_batch_work_a_share() {
    let mut reference = Reference::new();
    let batch: Vec<_> = (0..3).map(|_| submit(&mut reference, Priority::Batch, 100, 20)).collect();
    // Each waits until it is sent ahead, and then for what was started before it.
    for _ in 0..3 * (BATCH_PATIENCE + 150) {
        press(&mut reference, 3);
        reference.step();
    }
    assert!(batch.iter().all(|id| !reference.tokens.contains_key(id)), "batch work starves");
    assert!(reference.states(State::Waiting).len() >= 2);
    reference.close();
}

#[test]
fn a_greedy_tenant_does_not_hold_up_another() {
    let mut reference = Reference::new();
    for family in 0..50 {
        let priority = Priority::Interactive;
        reference.submit(Spec { priority, tenant: 0, family, prompt: 60, outputs: 30, patience: 1000 });
    }
    (0..30).for_each(|_| drop(reference.step()));
    let late = submit(&mut reference, Priority::Interactive, 60, 30);
    let waited = (0..).take_while(|_| {
        reference.step();
        reference.scheduler.get(late).is_some_and(|sequence| sequence.turn.is_none())
    });
    // The next seat is the late one's, not that of the dozens that came before it.
    assert!(waited.count() <= 40);
    assert!(reference.tokens.len() > 30);
    reference.finish();
    reference.close();
}

#[test]
fn nobody_is_started_to_be_preempted_at_once() {
    let mut reference = Reference::new();
    // 96 tokens and up to 60 more each: two fit with what they will draw, a third one would with its prompt alone.
    for _ in 0..3 {
        submit(&mut reference, Priority::Interactive, 90, 60);
    }
    (0..40).for_each(|_| drop(reference.step()));
    let census = reference.scheduler.census();
    assert_eq!((census.running, census.waiting, census.preemptions), (2, 1, 0));
    reference.finish();
    assert_eq!(reference.scheduler.census().preemptions, 0);
    reference.close();
}
