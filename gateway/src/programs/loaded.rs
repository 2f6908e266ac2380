//! Programs that requests have used lately, ready to be handed to workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Program, ProgramName};

/// Most programs that are kept.
const MOST: usize = 256;
/// Most bytes of their code.
const MOST_BYTES: u64 = 1 << 30;

/// Where a program is, once it is loaded; locked while that is under way, so that it is done once.
pub(super) type Place = Arc<tokio::sync::Mutex<Option<Arc<Program>>>>;

/// The programs by tenant and name. They are not shared among tenants, who could tell by the time
/// of an answer what others use.
#[derive(Debug, Default)]
pub(super) struct Loaded(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<(String, ProgramName), Entry>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    used: u64,
    bytes: u64,
}

impl Loaded {
    /// Where a program is or is to be. It counts as used now.
    pub(super) fn place(&self, tenant: &str, name: &ProgramName) -> Place {
        let mut shelf = self.lock();
        let place = shelf.entry(tenant, name).place.clone();
        shelf.make_room();
        place
    }

    /// Takes note of how long a program's code is. What was unused for longest makes room.
    pub(super) fn weigh(&self, tenant: &str, name: &ProgramName, bytes: u64) {
        let mut shelf = self.lock();
        shelf.entry(tenant, name).bytes = bytes;
        shelf.make_room();
    }

    /// Drops a program. Requests that use it keep theirs.
    pub(super) fn forget(&self, tenant: &str, name: &ProgramName) {
        self.lock()
            .entries
            .remove(&(tenant.to_owned(), name.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn entry(&mut self, tenant: &str, name: &ProgramName) -> &mut Entry {
        self.clock += 1;
        let entry = self
            .entries
            .entry((tenant.to_owned(), name.clone()))
            .or_insert_with(|| Entry {
                place: Place::default(),
                used: 0,
                bytes: 0,
            });
        entry.used = self.clock;
        entry
    }

    /// The one used last always stays.
    fn make_room(&mut self) {
        let mut bytes: u64 = self.entries.values().map(|entry| entry.bytes).sum();
        while self.entries.len() > 1 && (self.entries.len() > MOST || bytes > MOST_BYTES) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            bytes -= self.entries.remove(&key).map_or(0, |entry| entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: usize) -> ProgramName {
        format!("p{i}").parse().expect("a name")
    }

    #[test]
    fn what_was_unused_for_longest_makes_room() {
        let loaded = Loaded::default();
        let places: Vec<_> = (0..MOST).map(|i| loaded.place("a", &name(i))).collect();
        let is_kept = |i: usize| Arc::strong_count(&places[i]) > 1;
        loaded.place("a", &name(0));
        loaded.place("b", &name(0));
        assert!(is_kept(0) && !is_kept(1) && is_kept(2));

        loaded.weigh("b", &name(0), MOST_BYTES / 2);
        loaded.weigh("a", &name(2), MOST_BYTES / 2);
        assert!(is_kept(0));
        // One of its own size alone is above the limit, and is kept as long as nothing else is used.
        loaded.weigh("a", &name(3), MOST_BYTES + 1);
        assert!(is_kept(3) && (0..MOST).filter(|&i| is_kept(i)).count() == 1);
        loaded.forget("a", &name(3));
        assert!(!is_kept(3));
    }
}
