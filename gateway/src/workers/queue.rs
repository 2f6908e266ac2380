//! A model's queue: who may have how many sequences in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batching::TenantId;

/// A tenant that has sequences in the queue already may have up to so many times as many as there
/// are free places left (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory
/// Packet Switches", 1998): however many it sends, it does not fill the queue alone.
const GREED: usize = 8;

/// The places of a model's queue, each for a sequence that runs or waits.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<TenantId, usize>,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Queue {
            limit,
            taken: Mutex::default(),
        }
    }

    /// How many places there are.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How many are taken.
    pub(super) fn len(&self) -> usize {
        self.lock().all
    }

    /// Takes `count` places for a tenant, or none.
    pub(super) fn take(self: &Arc<Self>, tenant: TenantId, count: usize) -> Option<Places> {
        let mut taken = self.lock();
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        let left = self.limit.checked_sub(taken.all.checked_add(count)?)?;
        // Where there are no keys, everybody has everything.
        if tenant != TenantId::ANYONE && own > 0 && own + count > left.saturating_mul(GREED) {
            return None;
        }
        taken.all += count;
        *taken.by_tenant.entry(tenant).or_default() += count;
        Some(Places {
            queue: self.clone(),
            tenant,
            count,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places in a model's queue: one per live sequence, given back when dropped.
#[derive(Debug)]
pub(super) struct Places {
    queue: Arc<Queue>,
    tenant: TenantId,
    count: usize,
}

impl Places {
    /// Takes one place out of these, to be given back on its own.
    pub(super) fn split_one(&mut self) -> Option<Self> {
        self.count = self.count.checked_sub(1)?;
        Some(Places {
            queue: self.queue.clone(),
            tenant: self.tenant,
            count: 1,
        })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let mut taken = self.queue.lock();
        taken.all -= self.count;
        if let Some(own) = taken.by_tenant.get_mut(&self.tenant) {
            *own -= self.count;
            if *own == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn tenant(number: u32) -> TenantId {
        TenantId(NonZeroU32::new(number).expect("not 0"))
    }

    /// Takes one place after the other, as long as there are some.
    fn flood(queue: &Arc<Queue>, number: u32) -> Vec<Places> {
        std::iter::from_fn(|| queue.take(tenant(number), 1)).collect()
    }

    #[test]
    fn a_flood_leaves_places_for_others() {
        let queue = Arc::new(Queue::new(90));
        let first = flood(&queue, 2);
        assert_eq!(first.len(), 80, "eight of nine");
        let second = flood(&queue, 3);
        assert_eq!(second.len(), 8);
        let others: Vec<_> = (4..10)
            .map_while(|other| queue.take(tenant(other), 1))
            .collect();
        assert_eq!((others.len(), queue.len()), (2, 90), "all there is");
        drop((first, second, others));
        assert_eq!((queue.len(), queue.lock().by_tenant.len()), (0, 0));
        assert!(queue.take(tenant(2), 90).is_some_and(|all| all.count == 90));
        assert!(queue.take(tenant(2), 91).is_none());
    }

    #[test]
    fn where_all_are_one_nothing_is_kept() {
        let queue = Arc::new(Queue::new(4));
        let mut all = queue.take(TenantId::ANYONE, 2).expect("there is room");
        let _more = [1, 1].map(|one| queue.take(TenantId::ANYONE, one).expect("there is room"));
        assert!(queue.take(TenantId::ANYONE, 1).is_none());
        let one = all.split_one().expect("it has two");
        drop(all);
        assert_eq!(queue.len(), 3);
        drop(one);
        assert_eq!(queue.len(), 2);
    }
}
