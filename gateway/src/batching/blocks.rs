//! KV blocks: who owns which.
//!
//! A block is either free or in exactly one [`BlockTable`]. Types see to it: a table cannot be
//! cloned, grows only through [`Blocks::cover`], and is used up by [`Blocks::release`].

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
#[derive(Debug, Default)]
pub(super) struct BlockTable(Vec<u32>);

impl BlockTable {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

/// The blocks of one worker's arena.
#[derive(Debug)]
pub(super) struct Blocks {
    pool: Pool,
    size: usize,
}

impl Blocks {
    /// `count` free blocks of `size` positions, neither of them 0.
    pub(super) fn new(size: u32, count: u32) -> Self {
        Self {
            pool: Pool::new(count),
            size: size as usize,
        }
    }

    /// Blocks that hold this many positions.
    pub(super) fn needed(&self, positions: usize) -> usize {
        positions.div_ceil(self.size)
    }

    /// Grows a table until it holds this many positions. If there are too few free blocks it
    /// takes none and returns false.
    #[must_use]
    pub(super) fn cover(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        let missing = self.needed(positions).saturating_sub(table.0.len());
        if missing > self.pool.free() {
            return false;
        }
        table.0.extend((0..missing).map_while(|_| self.pool.take()));
        true
    }

    pub(super) fn release(&mut self, table: BlockTable) {
        for block in table.0 {
            self.pool.give(block);
        }
    }

    pub(super) fn free(&self) -> usize {
        self.pool.free()
    }

    pub(super) fn total(&self) -> usize {
        self.pool.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_covers_whole_blocks_or_takes_none() {
        let mut blocks = Blocks::new(4, 3);
        let mut a = BlockTable::default();
        assert!(blocks.cover(&mut a, 5));
        assert_eq!(a.as_slice(), [0, 1]);
        assert!(blocks.cover(&mut a, 8), "nothing more is needed");
        let mut b = BlockTable::default();
        assert!(!blocks.cover(&mut b, 5));
        assert_eq!((b.as_slice().len(), blocks.free()), (0, 1));
        blocks.release(a);
        assert!(blocks.cover(&mut b, 12));
        assert_eq!((blocks.free(), blocks.total()), (0, 3));
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
