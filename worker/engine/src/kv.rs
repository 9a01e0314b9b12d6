//! Who owns which block of the KV pool. The pool's memory is the runner's; here are only the books.

use crate::batch::BlockId;

/// Blocks by what they are good for; together they are the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Held by sequences.
    pub used: usize,
    /// Held by nobody, but their content may still be wanted.
    pub cached: usize,
    /// Held by nobody and empty.
    pub free: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} blocks wanted, {free} are free")]
pub(crate) struct OutOfBlocks {
    wanted: usize,
    free: usize,
}

/// The blocks of one sequence in the order of its positions. Only the allocator that filled it may empty it.
#[derive(Debug, Default)]
pub(crate) struct BlockTable(Vec<BlockId>);

impl BlockTable {
    pub(crate) fn as_slice(&self) -> &[BlockId] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        // A table that still has blocks when it goes has leaked them. Not while unwinding: that would abort.
        assert!(self.0.is_empty() || std::thread::panicking(), "a block table was dropped with {} blocks", self.len());
    }
}

/// Hands out the pool's blocks and takes them back; holders are counted, so that blocks can be shared.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    /// Holders of each block.
    holders: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockAllocator {
    pub(crate) fn new(blocks: usize) -> Self {
        let ids = 0..u32::try_from(blocks).expect("slots are counted in u32, so blocks are");
        Self { holders: vec![0; blocks], free: ids.rev().map(BlockId).collect() }
    }

    pub(crate) fn counts(&self) -> BlockCounts {
        BlockCounts { used: self.holders.len() - self.free.len(), cached: 0, free: self.free.len() }
    }

    /// Blocks that can be had now.
    pub(crate) fn available(&self) -> usize {
        self.free.len()
    }

    /// Adds `more` blocks to `table`, or none where there are fewer.
    pub(crate) fn grow(&mut self, table: &mut BlockTable, more: usize) -> Result<(), OutOfBlocks> {
        if more > self.free.len() {
            return Err(OutOfBlocks { wanted: more, free: self.free.len() });
        }
        for block in self.free.drain(self.free.len() - more..).rev() {
            let holders = &mut self.holders[block.0 as usize];
            assert_eq!(*holders, 0, "block {} was free and held", block.0);
            *holders = 1;
            table.0.push(block);
        }
        Ok(())
    }

    /// Takes all blocks of `table` back.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        for block in table.0.drain(..).rev() {
            let holders = &mut self.holders[block.0 as usize];
            *holders = holders.checked_sub(1).expect("a block in a table has a holder");
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_or_nothing() {
        let mut pool = BlockAllocator::new(3);
        let mut table = BlockTable::default();
        pool.grow(&mut table, 2).unwrap();
        assert_eq!(table.as_slice(), [BlockId(0), BlockId(1)]);
        assert_eq!(pool.grow(&mut table, 2), Err(OutOfBlocks { wanted: 2, free: 1 }));
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

    proptest! {
        #[test]
        fn no_block_is_owned_twice_and_none_is_lost(steps in prop::collection::vec((0usize..5, 0usize..5), 0..200)) {
            let mut pool = BlockAllocator::new(12);
            let mut tables: [BlockTable; 5] = Default::default();
            for (at, more) in steps {
                match more {
                    0 => pool.release(&mut tables[at]),
                    more => {
                        let fits = more <= pool.available();
                        prop_assert_eq!(pool.grow(&mut tables[at], more).is_ok(), fits);
                    }
                }
                let mut owned: Vec<_> = tables.iter().flat_map(|table| table.as_slice()).copied().collect();
                let held = owned.len();
                owned.sort_unstable();
                owned.dedup();
                prop_assert_eq!(owned.len(), held);
                prop_assert_eq!(pool.counts(), BlockCounts { used: held, cached: 0, free: 12 - held });
            }
            tables.iter_mut().for_each(|table| pool.release(table));
        }
    }
}
