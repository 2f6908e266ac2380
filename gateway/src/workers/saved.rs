//! What programs save for later requests: tokens under names, each tenant's by themselves.
//!
//! It is kept beside the workers, so that it survives them, and in memory: it is no storage, and programs
//! know that it can be gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use realm_shared::run::Keep;

use crate::batching::TenantId;

/// Most names of a tenant.
const MOST_NAMES: usize = 1024;
/// Most tokens of all tenants, of four bytes each.
const MOST_TOKENS: usize = 64 << 20;

/// All that is saved of a model.
#[derive(Debug)]
pub(super) struct Saved {
    shelves: HashMap<TenantId, Shelf>,
    /// Tokens on all of them.
    tokens: usize,
    most_tokens: usize,
    /// Uses so far.
    uses: u64,
}

/// What a tenant has saved.
#[derive(Debug, Default)]
struct Shelf {
    kept: HashMap<String, Kept>,
    tokens: usize,
}

#[derive(Debug)]
struct Kept {
    tokens: Vec<u32>,
    until: Instant,
    /// The number of its last use.
    used: u64,
}

impl Default for Saved {
    fn default() -> Self {
        Saved {
            shelves: HashMap::new(),
            tokens: 0,
            most_tokens: MOST_TOKENS,
            uses: 0,
        }
    }
}

impl Saved {
    /// Keeps something for a tenant that may have so many tokens here. What is too long for that is not
    /// kept; else what was used longest ago makes room.
    pub(super) fn keep(&mut self, tenant: TenantId, most: usize, keep: Keep, now: Instant) {
        self.uses += 1;
        let shelf = self.shelves.entry(tenant).or_default();
        self.tokens -= shelf.tokens;
        shelf.remove(&keep.name);
        let count = keep.tokens.len();
        if (1..=most).contains(&count) {
            shelf.kept.retain(|_, kept| kept.until > now);
            shelf.tokens = shelf.kept.values().map(|kept| kept.tokens.len()).sum();
            while shelf.tokens + count > most || shelf.kept.len() >= MOST_NAMES {
                shelf.remove_oldest();
            }
            shelf.tokens += count;
            let kept = Kept {
                tokens: keep.tokens,
                until: now + Duration::from_secs(keep.seconds.into()),
                used: self.uses,
            };
            shelf.kept.insert(keep.name, kept);
        }
        self.tokens += shelf.tokens;
        self.shrink();
    }

    /// The tokens that a tenant keeps under a name. Empty if there are none, or none any more.
    pub(super) fn find(&mut self, tenant: TenantId, name: &str, now: Instant) -> Vec<u32> {
        self.uses += 1;
        let shelf = self.shelves.get_mut(&tenant);
        let kept = shelf.and_then(|shelf| shelf.kept.get_mut(name));
        let kept = kept.filter(|kept| kept.until > now);
        kept.map_or_else(Vec::new, |kept| {
            kept.used = self.uses;
            kept.tokens.clone()
        })
    }

    /// Tokens of all tenants.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Has whoever saved most make room until all fits.
    fn shrink(&mut self) {
        while self.tokens > self.most_tokens
            && let Some(largest) = self.shelves.values_mut().max_by_key(|shelf| shelf.tokens)
        {
            self.tokens -= largest.tokens;
            largest.remove_oldest();
            self.tokens += largest.tokens;
        }
        self.shelves.retain(|_, shelf| !shelf.kept.is_empty());
    }
}

impl Shelf {
    fn remove(&mut self, name: &str) {
        let kept = self.kept.remove(name);
        self.tokens -= kept.map_or(0, |kept| kept.tokens.len());
    }

    fn remove_oldest(&mut self) {
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TenantId = TenantId::ANYONE;

    fn two() -> TenantId {
        TenantId(std::num::NonZero::new(ONE.0.get() + 1).expect("positive"))
    }

    fn keep(saved: &mut Saved, tenant: TenantId, name: &str, count: usize, now: Instant) {
        let keep = Keep {
            name: name.into(),
            seconds: 10,
            tokens: vec![7; count],
        };
        saved.keep(tenant, 10, keep, now);
        let counted = saved.shelves.values().flat_map(|shelf| shelf.kept.values());
        let counted: usize = counted.map(|kept| kept.tokens.len()).sum();
        assert_eq!(saved.tokens(), counted);
    }

    fn lengths(saved: &mut Saved, tenant: TenantId, names: &[&str], now: Instant) -> Vec<usize> {
        let length = |name: &&str| saved.find(tenant, name, now).len();
        names.iter().map(length).collect()
    }

    #[test]
    fn each_tenant_has_names_of_its_own() {
        let (mut saved, now) = (Saved::default(), Instant::now());
        keep(&mut saved, ONE, "a", 2, now);
        keep(&mut saved, two(), "a", 3, now);
        assert_eq!(lengths(&mut saved, ONE, &["a", "b"], now), [2, 0]);
        assert_eq!(lengths(&mut saved, two(), &["a", "b"], now), [3, 0]);
        keep(&mut saved, ONE, "a", 1, now);
        assert_eq!(lengths(&mut saved, ONE, &["a"], now), [1]);
        keep(&mut saved, ONE, "a", 0, now);
        keep(&mut saved, two(), "a", 11, now);
        assert_eq!(lengths(&mut saved, ONE, &["a"], now), [0]);
        assert_eq!(lengths(&mut saved, two(), &["a"], now), [0]);
        assert!(saved.shelves.is_empty());
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let (mut saved, now) = (Saved::default(), Instant::now());
        for name in ["a", "b", "c"] {
            keep(&mut saved, ONE, name, 3, now);
        }
        saved.find(ONE, "a", now);
        keep(&mut saved, ONE, "d", 4, now);
        assert_eq!(
            lengths(&mut saved, ONE, &["a", "b", "c", "d"], now),
            [3, 0, 3, 4]
        );
        for number in 0..2 * MOST_NAMES {
            let keep = Keep {
                name: number.to_string(),
                seconds: 10,
                tokens: vec![7],
            };
            saved.keep(ONE, usize::MAX, keep, now);
        }
        assert_eq!(saved.shelves[&ONE].kept.len(), MOST_NAMES);
    }

    #[test]
    fn whoever_saves_most_makes_room_where_all_save_too_much() {
        let (mut saved, now) = (Saved::default(), Instant::now());
        saved.most_tokens = 12;
        keep(&mut saved, two(), "a", 4, now);
        for name in ["a", "b", "c"] {
            keep(&mut saved, ONE, name, 3, now);
        }
        assert_eq!(lengths(&mut saved, two(), &["a"], now), [4]);
        assert_eq!(lengths(&mut saved, ONE, &["a", "b", "c"], now), [0, 3, 3]);
    }

    #[test]
    fn it_is_gone_when_its_time_is_over() {
        let (mut saved, now) = (Saved::default(), Instant::now());
        keep(&mut saved, ONE, "a", 6, now);
        let late = now + Duration::from_secs(10);
        let just = late.checked_sub(Duration::from_millis(1)).expect("later");
        assert_eq!(lengths(&mut saved, ONE, &["a"], just), [6]);
        assert_eq!(lengths(&mut saved, ONE, &["a"], late), [0]);
        // Nobody makes room for it either.
        keep(&mut saved, ONE, "b", 4, just);
        keep(&mut saved, ONE, "c", 6, late);
        assert_eq!(lengths(&mut saved, ONE, &["b", "c"], late), [4, 6]);
    }
}
