//! Grammars that were compiled, for those who ask for them again.
//!
//! Each tenant has its own: nobody is to tell by the time what another one used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use realm_shared::grammar::Grammar;

use super::grammar::Matcher;
use super::lanes::slow_down;
use super::{Failure, Vocabulary};

/// Most grammars of a tenant, and what they may take in bytes.
const TENANT: Bounds = Bounds {
    entries: 64,
    bytes: 32 << 20,
};
/// The same of all tenants.
const ALL: Bounds = Bounds {
    entries: 1024,
    bytes: 256 << 20,
};

#[derive(Clone, Copy)]
struct Bounds {
    entries: usize,
    bytes: usize,
}

/// A matcher at the beginning of a text, or why there is none.
type Compiled = Result<Matcher, String>;

/// Those of one gateway.
#[derive(Default)]
pub(super) struct GrammarCache(Mutex<State>);

#[derive(Default)]
struct State {
    entries: HashMap<u32, HashMap<Grammar, Entry>>,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    compiled: Compiled,
    bytes: usize,
    /// The clock when it was used last.
    used: u64,
}

impl GrammarCache {
    /// A matcher at the beginning of a text, of its own, or why the grammar cannot be compiled. Where
    /// it is new, that goes on in the slow lane.
    ///
    /// # Errors
    /// If the model has no vocabulary that can be used.
    pub(super) async fn compile(
        &self,
        vocabulary: &Vocabulary,
        tenant: u32,
        grammar: &Grammar,
    ) -> Result<Compiled, Failure> {
        if let Some(compiled) = self.get(tenant, grammar) {
            return Ok(compiled);
        }
        slow_down().await;
        // Another choice of the same request may have been quicker.
        if let Some(compiled) = self.get(tenant, grammar) {
            return Ok(compiled);
        }
        let compiled = vocabulary.grammars()?.compile(grammar);
        self.put(tenant, grammar, copy(&compiled));
        Ok(compiled)
    }

    fn get(&self, tenant: u32, grammar: &Grammar) -> Option<Compiled> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        let entry = state.entries.get_mut(&tenant)?.get_mut(grammar)?;
        entry.used = now;
        Some(copy(&entry.compiled))
    }

    fn put(&self, tenant: u32, grammar: &Grammar, compiled: Compiled) {
        let bytes = grammar.text().len()
            + match &compiled {
                Ok(matcher) => matcher.bytes(),
                Err(message) => message.len(),
            };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let used = state.clock;
        let entry = Entry {
            compiled,
            bytes,
            used,
        };
        let own = state.entries.entry(tenant).or_default();
        own.insert(grammar.clone(), entry);
        while TENANT.are_exceeded_by(own.values()) {
            forget_oldest(own);
        }
        state.keep_to(ALL);
    }
}

impl State {
    /// Forgets what was not used for longest, whosever it is.
    fn keep_to(&mut self, bounds: Bounds) {
        while bounds.are_exceeded_by(self.entries.values().flat_map(HashMap::values)) {
            let oldest = |own: &HashMap<_, Entry>| own.values().map(|entry| entry.used).min();
            let whose = self.entries.iter().min_by_key(|(_, own)| oldest(own));
            let Some(tenant) = whose.map(|(tenant, _)| *tenant) else {
                return;
            };
            if let Some(own) = self.entries.get_mut(&tenant) {
                forget_oldest(own);
                if own.is_empty() {
                    self.entries.remove(&tenant);
                }
            }
        }
    }
}

impl Bounds {
    fn are_exceeded_by<'a>(self, entries: impl Iterator<Item = &'a Entry>) -> bool {
        let (mut count, mut bytes) = (0, 0);
        for entry in entries {
            count += 1;
            bytes += entry.bytes;
        }
        count > self.entries || bytes > self.bytes
    }
}

fn forget_oldest(own: &mut HashMap<Grammar, Entry>) {
    let oldest = own.iter().min_by_key(|(_, entry)| entry.used);
    if let Some(grammar) = oldest.map(|(grammar, _)| grammar.clone()) {
        own.remove(&grammar);
    }
}

fn copy(compiled: &Compiled) -> Compiled {
    compiled.as_ref().map(Matcher::copy).map_err(String::clone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ModelSource;

    fn regex(text: &str) -> Grammar {
        Grammar::Regex(text.into())
    }

    /// Puts a grammar in that is none, and takes next to no room.
    fn put(cache: &GrammarCache, tenant: u32, text: &str) {
        cache.put(tenant, &regex(text), Err("none".into()));
    }

    #[test]
    fn what_a_tenant_compiled_is_there_for_that_tenant() {
        let vocabulary = Vocabulary::of(&ModelSource::Embedded);
        let grammars = vocabulary.grammars().expect("made");
        let cache = GrammarCache::default();
        let compiled = grammars.compile(&regex("a+"));
        cache.put(1, &regex("a+"), compiled);
        put(&cache, 1, "(");
        let again = cache.get(1, &regex("a+")).expect("there");
        let mut again = again.expect("compiles");
        let mut fresh = grammars.compile(&regex("a+")).expect("compiles");
        assert_eq!(again.mask(&[2]), fresh.mask(&[2]));
        assert_eq!(again.bytes(), again.own_bytes(), "it shares nothing");
        assert_eq!(
            cache.get(1, &regex("(")).expect("there").err(),
            Some("none".into())
        );
        assert!(cache.get(2, &regex("a+")).is_none(), "of another tenant");
        assert!(cache.get(1, &Grammar::Lark("a+".into())).is_none());
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten() {
        let cache = GrammarCache::default();
        put(&cache, 1, "first");
        put(&cache, 1, "second");
        put(&cache, 2, "other");
        for n in 2..TENANT.entries {
            put(&cache, 1, &n.to_string());
        }
        assert!(cache.get(1, &regex("first")).is_some());
        put(&cache, 1, "last");
        assert!(cache.get(1, &regex("second")).is_none());
        for text in ["first", "2", "last"] {
            assert!(cache.get(1, &regex(text)).is_some(), "{text}");
        }
        assert!(cache.get(2, &regex("other")).is_some(), "of its own bounds");
        // One that is larger than all that a tenant may have is not kept.
        put(&cache, 3, &"x".repeat(TENANT.bytes));
        assert!(cache.get(3, &regex(&"x".repeat(TENANT.bytes))).is_none());
    }

    #[test]
    fn all_tenants_together_have_bounds() {
        let cache = GrammarCache::default();
        let tenants = u32::try_from(ALL.entries).expect("few") + 1;
        for tenant in 0..tenants {
            put(&cache, tenant, "a");
        }
        assert!(cache.get(0, &regex("a")).is_none());
        assert!(cache.get(1, &regex("a")).is_some());
        let state = cache.0.lock().expect("not poisoned");
        assert_eq!(state.entries.len(), ALL.entries);
    }
}
