//! Prefixes: computed once, whoever comes with them, and never for another tenant.

use super::*;

fn spec(tenant: usize, family: usize, prompt: usize) -> Spec {
    Spec { priority: Priority::Interactive, tenant, family, prompt, outputs: 3, patience: 1000 }
}

fn cached(reference: &Reference, id: SequenceId) -> Option<usize> {
    reference.scheduler.get(id).unwrap().cached
}

#[test]
fn a_prefix_is_computed_once_and_its_last_token_again() {
    let mut reference = Reference::new();
    reference.submit(spec(0, 1, 96));
    reference.finish();
    let counts = reference.scheduler.census().kv_blocks;
    // The last block of 96 + 3 tokens never became full.
    assert_eq!((counts.used, counts.cached), (0, 3));

    // Of three full blocks one is computed again: no token could be drawn otherwise.
    let again = reference.submit(spec(0, 1, 96));
    assert_eq!(reference.scheduler.census().queued_tokens, 32);
    assert_eq!(reference.step().rows(), 32);
    assert_eq!(cached(&reference, again), Some(64));
    // With one token more, all of them count, and only the new token is read.
    let longer = reference.submit(spec(0, 1, 97));
    assert_eq!(reference.step().chunks[1].rows, 1);
    assert_eq!(cached(&reference, longer), Some(96));
    // The other family goes another way after the first block.
    let fork = reference.submit(spec(0, 2, 96));
    reference.step();
    assert_eq!(cached(&reference, fork), Some(32));
    reference.finish();
    reference.close();
}

#[test]
fn many_copies_that_come_at_once_are_read_once() {
    let mut reference = Reference::with(48, 6, 40);
    let copies: Vec<_> = (0..6).map(|_| reference.submit(spec(0, 1, 140))).collect();
    // 140 tokens at 48 a step, while the others wait.
    for rows in [48, 48, 44] {
        let plan = reference.step();
        assert_eq!((plan.chunks.len(), plan.chunks[0].id, plan.rows()), (1, copies[0], rows));
    }
    // 128 tokens are in full blocks; each reads the 12 that are left.
    assert_eq!(reference.step().chunks.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [1, 12, 12, 12, 11]);
    assert!(copies[1..5].iter().all(|id| cached(&reference, *id) == Some(128)));
    reference.finish();
    assert_eq!(reference.rows, 140 + 5 * 12 + 6 * 2);
    reference.close();
}

#[test]
fn who_waits_for_another_goes_on_when_that_one_ends() {
    let mut reference = Reference::with(48, 6, 40);
    let first = reference.submit(spec(0, 1, 140));
    let second = reference.submit(spec(0, 1, 140));
    reference.step();
    reference.remove(first);
    let plan = reference.step();
    assert_eq!((plan.chunks[0].id, plan.rows(), cached(&reference, second)), (second, 48, Some(32)));
    reference.finish();
    reference.close();
}

#[test]
fn interactive_work_does_not_wait_for_batch_work() {
    let mut reference = Reference::with(48, 6, 40);
    reference.submit(Spec { priority: Priority::Batch, ..spec(0, 1, 140) });
    reference.step();
    let urgent = reference.submit(spec(0, 1, 140));
    assert_eq!(reference.step().chunks[0].id, urgent);
    reference.finish();
    reference.close();
}

#[test]
fn a_preempted_sequence_finds_what_the_cache_still_has() {
    let mut reference = Reference::new();
    let first = submit(&mut reference, Priority::Batch, 64, 96);
    let second = submit(&mut reference, Priority::Batch, 100, 75);
    while reference.scheduler.census().preemptions == 0 {
        reference.step();
    }
    // It lost one block to the other; four of its five were full, and the last of them was not the one that went.
    let tokens = reference.tokens[&second].len();
    assert!(reference.scheduler.census().queued_tokens < tokens / 2);
    reference.remove(first);
    reference.step();
    let sequence = reference.scheduler.get(second).unwrap();
    assert!(sequence.computed > tokens / 2, "{} of {tokens}", sequence.computed);
    assert_eq!(sequence.cached, Some(0), "what it left itself is no hit");
    reference.finish();
    reference.close();
}

proptest! {
    /// What one tenant is computed and told is the same whether another one has left its secret in the cache or not.
    #[test]
    fn no_tenant_learns_what_another_one_has_asked(secret in 1usize..140, probes in prop::collection::vec((0usize..3, 1usize..140), 1..6)) {
        let probe = |warm: Option<usize>| {
            let mut reference = Reference::new();
            if let Some(tenant) = warm {
                reference.submit(spec(tenant, 1, secret));
                reference.finish();
            }
            let before = reference.rows;
            let told: Vec<_> = probes.iter().map(|(family, prompt)| {
                let id = reference.submit(spec(0, *family, *prompt));
                let queued = reference.scheduler.census().queued_tokens;
                reference.step();
                let told = (queued, cached(&reference, id));
                reference.finish();
                told
            }).collect();
            let rows = reference.rows - before;
            reference.close();
            (rows, told)
        };
        let cold = probe(None);
        prop_assert_eq!(&probe(Some(1)), &cold);
        // Within the tenant the hit shows.
        let (rows, told) = probe(Some(0));
        let shared = |(family, prompt): &(usize, usize)| {
            let same = if *family == 1 { secret } else { secret.min(BLOCK_TOKENS) };
            (same / BLOCK_TOKENS).min((prompt - 1) / BLOCK_TOKENS)
        };
        if shared(&probes[0]) > 0 {
            prop_assert!(rows < cold.0 && told[0].1 > Some(0));
        }
    }
}
