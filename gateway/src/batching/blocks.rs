//! KV blocks: who owns which, and which of them hold what somebody may ask for again.
//!
//! A block is in as many [`BlockTable`]s as it has references. Without any it is free: either it
//! holds nothing worth keeping, or it is *idle*, named by the [`Digest`] of what it holds and
//! taken over for something else when no other block is left, the one unused for longest first.
//! Types see to the references: a table cannot be cloned, changes only through [`Blocks::share`],
//! [`Blocks::replace`] and [`Blocks::cover`], and is used up by [`Blocks::release`].
//!
//! Only full blocks have names, and only their first owner ever wrote to them: a sequence writes
//! behind the blocks that it shares.

use std::collections::{BTreeMap, HashMap};

use super::prefix::Digest;
use super::sequence::TenantId;

/// The numbers `0..total`, each free or taken. Numbers never taken cost no memory, so a worker
/// that claims an absurd total does no harm.
#[derive(Debug)]
pub(super) struct Pool {
    total: u32,
    /// Numbers from here on were never taken.
    fresh: u32,
    /// Numbers given back, the latest last; it is taken first, while it is warm in some cache.
    returned: Vec<u32>,
}

impl Pool {
    pub(super) fn new(total: u32) -> Self {
        Self {
            total,
            fresh: 0,
            returned: Vec::new(),
        }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.returned.pop() {
            return Some(number);
        }
        let number = self.fresh;
        (number < self.total).then(|| {
            self.fresh += 1;
            number
        })
    }

    /// Gives back a number that [`Pool::take`] returned.
    pub(super) fn give(&mut self, number: u32) {
        debug_assert!(number < self.fresh);
        self.returned.push(number);
    }

    pub(super) fn free(&self) -> usize {
        (self.total - self.fresh) as usize + self.returned.len()
    }

    pub(super) fn total(&self) -> usize {
        self.total as usize
    }
}

/// The blocks of one sequence, in the order of its positions.
#[derive(Debug)]
pub(super) struct BlockTable {
    owner: TenantId,
    numbers: Vec<u32>,
}

impl BlockTable {
    /// Without blocks. Names tell tenants apart, so all tables that a block is in have one owner.
    pub(super) fn new(owner: TenantId) -> Self {
        Self {
            owner,
            numbers: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.numbers
    }
}

/// A block that is in some table, or idle.
#[derive(Debug, Default)]
struct Block {
    /// Tables that it is in.
    references: u32,
    /// Its entry in the index, if it has one.
    name: Option<Digest>,
    /// Where it is in `idle`, if it has no references.
    idle_since: u64,
}

/// Blocks that are there already for the beginning of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// How many, from the front.
    pub(super) blocks: usize,
    /// How many of them are idle, and so count as free.
    pub(super) idle: usize,
}

/// The blocks of one worker's arena.
#[derive(Debug)]
pub(super) struct Blocks {
    size: usize,
    /// Gives out the blocks that hold nothing worth keeping.
    pool: Pool,
    /// By number; as long as the highest number that was ever taken.
    blocks: Vec<Block>,
    /// What the named blocks hold.
    index: HashMap<Digest, u32>,
    /// Named blocks without references, the one unused for longest first.
    idle: BTreeMap<u64, u32>,
    /// Rises with every block that becomes idle.
    clock: u64,
    /// Blocks in tables of each tenant that has any, one that several share counted once.
    used: HashMap<TenantId, usize>,
}

impl Blocks {
    /// `count` free blocks of `size` positions, neither of them 0.
    pub(super) fn new(size: u32, count: u32) -> Self {
        Self {
            size: size as usize,
            pool: Pool::new(count),
            blocks: Vec::new(),
            index: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            used: HashMap::new(),
        }
    }

    /// Blocks that hold this many positions.
    pub(super) fn needed(&self, positions: usize) -> usize {
        positions.div_ceil(self.size)
    }

    /// Positions of a block.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Looks for blocks of these names, until one is not there.
    pub(super) fn find(&self, names: &[Digest]) -> Found {
        let numbers = names.iter().map_while(|name| self.index.get(name));
        numbers.fold(Found::default(), |found, &number| Found {
            blocks: found.blocks + 1,
            idle: found.idle + usize::from(self.blocks[number as usize].references == 0),
        })
    }

    /// Appends the block of this name to a table. False if there is none.
    #[must_use]
    pub(super) fn share(&mut self, table: &mut BlockTable, name: &Digest) -> bool {
        let Some(&number) = self.index.get(name) else {
            return false;
        };
        let block = &mut self.blocks[number as usize];
        if block.references == 0 {
            self.idle.remove(&block.idle_since);
            *self.used.entry(table.owner).or_default() += 1;
        }
        block.references += 1;
        table.numbers.push(number);
        true
    }

    /// Grows a table until it holds this many positions. If there are too few free blocks it
    /// takes none and returns false.
    #[must_use]
    pub(super) fn cover(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        let missing = self.needed(positions).saturating_sub(table.len());
        if missing > self.free() {
            return false;
        }
        if missing > 0 {
            *self.used.entry(table.owner).or_default() += missing;
        }
        let taken = (0..missing).map_while(|_| self.take());
        table.numbers.extend(taken);
        true
    }

    fn take(&mut self) -> Option<u32> {
        let number = self.pool.take().or_else(|| {
            let (_, number) = self.idle.pop_first()?;
            if let Some(name) = self.blocks[number as usize].name.take() {
                self.index.remove(&name);
            }
            Some(number)
        })?;
        let index = number as usize;
        if index == self.blocks.len() {
            self.blocks.push(Block::default());
        }
        self.blocks[index].references = 1;
        Some(number)
    }

    /// Puts the block of this name into a table in the place of what it has there. False if there
    /// is none, or it is there already.
    pub(super) fn replace(&mut self, table: &mut BlockTable, at: usize, name: &Digest) -> bool {
        let own = table.numbers[at];
        if self.index.get(name).is_none_or(|&number| number == own) || !self.share(table, name) {
            return false;
        }
        self.release(BlockTable {
            owner: table.owner,
            numbers: vec![table.numbers.swap_remove(at)],
        });
        true
    }

    /// Takes the names off the blocks of a table: what they hold is of use to nobody.
    pub(super) fn unname(&mut self, table: &BlockTable) {
        for &number in &table.numbers {
            if let Some(name) = self.blocks[number as usize].name.take() {
                self.index.remove(&name);
            }
        }
    }

    /// Names a block of a table, whose every position is computed by steps already sent: it can
    /// be shared by all steps after them. Where another block has the name already, that stays.
    pub(super) fn name(&mut self, table: &BlockTable, at: usize, name: Digest) {
        let number = table.numbers[at];
        let block = &mut self.blocks[number as usize];
        if block.name.is_none() {
            self.index.entry(name).or_insert_with(|| {
                block.name = Some(name);
                number
            });
        }
    }

    pub(super) fn release(&mut self, table: BlockTable) {
        // A block is of no use without those before it, so they become idle after it.
        let mut freed = 0;
        for &number in table.numbers.iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.references -= 1;
            if block.references > 0 {
                continue;
            }
            freed += 1;
            if block.name.is_some() {
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, number);
            } else {
                self.pool.give(number);
            }
        }
        if let Some(used) = self.used.get_mut(&table.owner) {
            *used -= freed;
            if *used == 0 {
                self.used.remove(&table.owner);
            }
        }
    }

    /// Blocks that a tenant has in tables, one that several share counted once.
    pub(super) fn used_by(&self, owner: TenantId) -> usize {
        self.used.get(&owner).copied().unwrap_or(0)
    }

    /// Blocks that can be taken, idle ones included.
    pub(super) fn free(&self) -> usize {
        self.pool.free() + self.idle.len()
    }

    pub(super) fn total(&self) -> usize {
        self.pool.total()
    }

    /// Checks every invariant, given the tables that there are.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut references = vec![0; self.blocks.len()];
        let mut used = HashMap::new();
        for table in tables {
            for &number in &table.numbers {
                references[number as usize] += 1;
                if references[number as usize] == 1 {
                    *used.entry(table.owner).or_default() += 1;
                }
            }
        }
        assert_eq!(self.used, used);
        let mut named = 0;
        for (number, (block, references)) in self.blocks.iter().zip(&references).enumerate() {
            let number = number as u32;
            assert_eq!(block.references, *references, "block {number}");
            let is_idle = self.idle.get(&block.idle_since) == Some(&number);
            assert_eq!(is_idle, *references == 0 && block.name.is_some());
            let is_returned = self.pool.returned.contains(&number);
            assert_eq!(is_returned, *references == 0 && block.name.is_none());
            if let Some(name) = block.name {
                assert_eq!(self.index.get(&name), Some(&number));
                named += 1;
            }
        }
        assert_eq!(self.index.len(), named);
        let used = references.iter().filter(|&&count| count > 0).count();
        assert_eq!(used + self.free(), self.total());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::prefix::Prefix;

    fn names(count: u32) -> Vec<Digest> {
        let mut prefix = Prefix::default();
        (0..count).for_each(|token| prefix.push(TenantId::ANYONE, [token]));
        prefix.digests().to_vec()
    }

    /// A table of full, named blocks.
    fn full(blocks: &mut Blocks, names: &[Digest]) -> BlockTable {
        let mut table = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.cover(&mut table, names.len() * blocks.size()));
        for (at, name) in names.iter().enumerate() {
            blocks.name(&table, at, *name);
        }
        table
    }

    #[test]
    fn a_table_covers_whole_blocks_or_takes_none() {
        let mut blocks = Blocks::new(4, 3);
        let mut a = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.cover(&mut a, 5));
        assert_eq!(a.as_slice(), [0, 1]);
        assert!(blocks.cover(&mut a, 8), "nothing more is needed");
        let mut b = BlockTable::new(TenantId::ANYONE);
        assert!(!blocks.cover(&mut b, 5));
        assert_eq!((b.as_slice().len(), blocks.free()), (0, 1));
        blocks.release(a);
        assert!(blocks.cover(&mut b, 12));
        assert_eq!((blocks.free(), blocks.total()), (0, 3));
        blocks.check([&b].into_iter());
    }

    #[test]
    fn a_named_block_is_shared_while_it_is_used_and_after() {
        let (mut blocks, names) = (Blocks::new(4, 4), names(3));
        let a = full(&mut blocks, &names[..2]);
        let found = |blocks, idle| Found { blocks, idle };
        assert_eq!(blocks.find(&names), found(2, 0));
        let mut b = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.share(&mut b, &names[0]) && !blocks.share(&mut b, &names[2]));
        assert_eq!((b.as_slice(), blocks.free()), (&a.as_slice()[..1], 2));
        blocks.release(a);
        assert_eq!((blocks.find(&names), blocks.free()), (found(2, 1), 3));
        blocks.check([&b].into_iter());
        blocks.release(b);
        assert_eq!((blocks.find(&names), blocks.free()), (found(2, 2), 4));
        blocks.check([].into_iter());
    }

    #[test]
    fn the_block_unused_for_longest_is_taken_over_and_the_end_of_a_prefix_before_its_beginning() {
        let (mut blocks, names) = (Blocks::new(1, 4), names(4));
        let (old, young) = (
            full(&mut blocks, &names[..2]),
            full(&mut blocks, &names[2..]),
        );
        blocks.release(old);
        blocks.release(young);
        let mut table = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.cover(&mut table, 1));
        assert_eq!(blocks.find(&names[..2]).blocks, 1, "the end went first");
        assert_eq!(blocks.find(&names[2..]).blocks, 2);
        assert!(blocks.cover(&mut table, 2));
        assert_eq!(blocks.find(&names[..1]).blocks, 0);
        assert_eq!(blocks.find(&names[2..]).blocks, 2);
        assert!(blocks.share(&mut table, &names[2]), "now in use");
        assert!(blocks.cover(&mut table, 4) && !blocks.cover(&mut table, 5));
        assert_eq!(blocks.find(&names[2..]).blocks, 1, "the other one was idle");
        blocks.check([&table].into_iter());
    }

    #[test]
    fn a_block_is_replaced_by_one_that_is_further() {
        let (mut blocks, names) = (Blocks::new(4, 6), names(3));
        let a = full(&mut blocks, &names[..2]);
        let mut b = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.cover(&mut b, 12));
        assert!(blocks.replace(&mut b, 1, &names[1]));
        assert!(!blocks.replace(&mut b, 1, &names[1]), "done");
        assert!(!blocks.replace(&mut b, 2, &names[2]), "there is none");
        assert_eq!(b.as_slice(), [2, a.as_slice()[1], 4]);
        assert_eq!(blocks.free(), 2);
        blocks.check([&a, &b].into_iter());
    }

    #[test]
    fn what_is_of_no_use_is_not_found_again() {
        let (mut blocks, names) = (Blocks::new(4, 3), names(2));
        let a = full(&mut blocks, &names);
        let mut b = BlockTable::new(TenantId::ANYONE);
        assert!(blocks.share(&mut b, &names[0]));
        blocks.unname(&b);
        assert_eq!(blocks.find(&names).blocks, 0);
        blocks.check([&a, &b].into_iter());
        blocks.release(a);
        blocks.release(b);
        blocks.check([].into_iter());
    }

    #[test]
    fn of_two_blocks_that_hold_the_same_one_is_named() {
        let (mut blocks, names) = (Blocks::new(4, 2), names(1));
        let (a, b) = (full(&mut blocks, &names), full(&mut blocks, &names));
        blocks.check([&a, &b].into_iter());
        blocks.release(a);
        blocks.release(b);
        assert_eq!((blocks.find(&names).idle, blocks.free()), (1, 2));
        blocks.check([].into_iter());
    }

    #[test]
    fn an_absurd_total_allocates_nothing() {
        let mut pool = Pool::new(u32::MAX);
        assert_eq!(pool.take(), Some(0));
        assert_eq!(pool.free(), u32::MAX as usize - 1);
        pool.give(0);
        assert_eq!(pool.free(), u32::MAX as usize);
    }
}
