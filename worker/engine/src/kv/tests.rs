//! The allocator against the plain rules: nothing lost, nothing held twice unless shared, no prefix with a hole.

use proptest::prelude::*;

use super::*;
use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::prefix::{Root, Secret};

/// The keys of a sequence whose blocks hold these words, a block a word.
fn keys(words: &[u32]) -> Vec<PrefixKey> {
    let secret = Secret::new([0; 32]);
    let root = secret.root(&Root { model: "m", adapter: "", tenant: None, salt: b"" });
    let next = |parent: &mut PrefixKey, word: &TokenId| {
        *parent = secret.child(*parent, &[*word; BLOCK_TOKENS]);
        Some(*parent)
    };
    words.iter().scan(root, next).collect()
}

/// A table with the blocks of `keys`, those that the pool has not written anew.
fn fill(pool: &mut BlockAllocator, keys: &[PrefixKey]) -> BlockTable {
    let mut table = BlockTable::default();
    let hits = pool.hits(keys);
    pool.attach(&mut table, &keys[..hits]);
    pool.grow(&mut table, keys.len() - hits).unwrap();
    (hits..keys.len()).for_each(|at| pool.publish(&mut table, at, keys[at]));
    table
}

#[test]
fn all_or_nothing() {
    let mut pool = BlockAllocator::new(3);
    let mut table = BlockTable::default();
    pool.grow(&mut table, 2).unwrap();
    assert_eq!(table.as_slice(), [BlockId(0), BlockId(1)]);
    assert_eq!(pool.grow(&mut table, 2), Err(OutOfBlocks { wanted: 2, available: 1 }));
    assert_eq!(pool.counts(), BlockCounts { used: 2, cached: 0, free: 1 });
    pool.release(&mut table);
    assert_eq!(pool.counts(), BlockCounts { used: 0, cached: 0, free: 3 });
}

#[test]
#[should_panic(expected = "dropped with 1 blocks")]
fn a_leak_is_noticed() {
    let mut table = BlockTable::default();
    BlockAllocator::new(1).grow(&mut table, 1).unwrap();
}

#[test]
fn a_prefix_is_kept_shared_and_forgotten_from_its_end() {
    let mut pool = BlockAllocator::new(4);
    let (long, fork) = (keys(&[1, 2, 3]), keys(&[1, 2, 4]));
    let mut first = fill(&mut pool, &long);
    pool.release(&mut first);
    assert_eq!(pool.counts(), BlockCounts { used: 0, cached: 3, free: 1 });
    assert_eq!((pool.hits(&long), pool.hits(&fork), pool.idle_among(&fork[..2])), (3, 2, 2));

    let (mut first, mut second) = (fill(&mut pool, &long), fill(&mut pool, &fork));
    assert_eq!(first.as_slice()[..2], second.as_slice()[..2]);
    assert_eq!((pool.held_alone(&first), pool.held_alone(&second), pool.idle_among(&long)), (1, 1, 0));
    assert_eq!(pool.counts(), BlockCounts { used: 4, cached: 0, free: 0 });
    pool.release(&mut first);
    pool.release(&mut second);

    // What was let go of first, then from the other one's end.
    let mut other = BlockTable::default();
    for left in [(2, 3), (2, 2), (1, 1), (0, 0)] {
        pool.grow(&mut other, 1).unwrap();
        assert_eq!((pool.hits(&long), pool.hits(&fork)), left);
    }
    pool.release(&mut other);
    assert_eq!(pool.counts(), BlockCounts { used: 0, cached: 0, free: 4 });
}

#[test]
fn what_was_computed_twice_is_kept_once() {
    let mut pool = BlockAllocator::new(4);
    let keys = keys(&[1, 2]);
    let (mut first, mut second) = (BlockTable::default(), BlockTable::default());
    pool.grow(&mut first, 2).unwrap();
    pool.grow(&mut second, 2).unwrap();
    (0..2).for_each(|at| pool.publish(&mut first, at, keys[at]));
    (0..2).for_each(|at| pool.publish(&mut second, at, keys[at]));
    assert_eq!(first.as_slice(), second.as_slice());
    assert_eq!(pool.counts(), BlockCounts { used: 2, cached: 0, free: 2 });
    pool.release(&mut first);
    pool.release(&mut second);
    assert_eq!(pool.counts(), BlockCounts { used: 0, cached: 2, free: 2 });
}

#[derive(Debug, Clone)]
enum Action {
    /// Another sequence at this place, if the pool has room for it: it begins as the cache has it.
    Start(usize, Vec<u32>),
    /// So many more of its blocks are written.
    Write(usize, usize),
    Release(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (0usize..5, prop::collection::vec(0u32..2, 1..6)).prop_map(|(at, words)| Action::Start(at, words)),
        3 => (0usize..5, 1usize..4).prop_map(|(at, blocks)| Action::Write(at, blocks)),
        1 => (0usize..5).prop_map(Action::Release),
    ]
}

#[derive(Default)]
struct Holder {
    keys: Vec<PrefixKey>,
    table: BlockTable,
    /// Its blocks that are full.
    written: usize,
}

const POOL: usize = 12;

fn act(pool: &mut BlockAllocator, holders: &mut [Holder; 5], action: Action) {
    match action {
        Action::Start(at, words) => {
            let holder = &mut holders[at];
            pool.release(&mut holder.table);
            holder.keys = keys(&words);
            holder.written = pool.hits(&holder.keys);
            pool.attach(&mut holder.table, &holder.keys[..holder.written]);
        }
        Action::Write(at, blocks) => {
            let Holder { keys, table, written } = &mut holders[at];
            let more = (*written + blocks).min(keys.len()).saturating_sub(table.len());
            let fits = more <= pool.available();
            assert_eq!(pool.grow(table, more).is_ok(), fits);
            while *written < table.len() {
                pool.publish(table, *written, keys[*written]);
                *written += 1;
            }
        }
        Action::Release(at) => {
            pool.release(&mut holders[at].table);
            holders[at].keys.clear();
            holders[at].written = 0;
        }
    }
}

proptest! {
    #[test]
    fn no_block_is_lost_and_no_prefix_has_a_hole(actions in prop::collection::vec(action(), 0..200)) {
        let mut pool = BlockAllocator::new(POOL);
        let mut holders: [Holder; 5] = Default::default();
        for action in actions {
            act(&mut pool, &mut holders, action);
            let mut held = vec![0; POOL];
            for block in holders.iter().flat_map(|holder| holder.table.as_slice()) {
                held[block.0 as usize] += 1;
            }
            let counted: Vec<_> = pool.blocks.iter().map(|block| block.holders).collect();
            prop_assert_eq!(&counted, &held);
            let counts = pool.counts();
            prop_assert_eq!(counts.used, held.iter().filter(|holders| **holders > 0).count());
            prop_assert_eq!(counts.used + counts.cached + counts.free, POOL);
            prop_assert_eq!(pool.blocks.iter().filter(|block| block.key.is_some()).count(), pool.by_key.len());
            // Every sequence of up to five words, whether it is still held or not.
            for words in 0..32u32 {
                let keys = keys(&(0..5).map(|at| words >> at & 1).collect::<Vec<_>>());
                let there: Vec<_> = keys.iter().map(|key| pool.by_key.contains_key(key)).collect();
                prop_assert!(there.is_sorted_by(|before, after| before >= after), "{there:?}");
                let hits = pool.hits(&keys);
                let idle = keys[..hits].iter().filter(|key| pool.holders(pool.by_key[*key]) == 0).count();
                prop_assert_eq!(pool.idle_among(&keys[..hits]), idle);
            }
            for holder in &holders {
                let alone = holder.table.as_slice().iter().filter(|block| pool.holders(**block) == 1).count();
                prop_assert_eq!(pool.held_alone(&holder.table), alone);
            }
        }
        holders.iter_mut().for_each(|holder| pool.release(&mut holder.table));
        prop_assert_eq!(pool.counts().used, 0);
    }
}
