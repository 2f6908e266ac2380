//! Versions of programs that are not run any more, because they crashed workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use metrics::gauge;
use serde::Serialize;

use crate::digest::Digest;

/// Which versions they are, each a tenant's, by the digest of the component; a handle. What another tenant has
/// stored is another version, also where the component is the same: what one sends it must not cost the other.
///
/// It lasts as long as the gateway.
#[derive(Debug, Clone, Default)]
pub struct Quarantine(Arc<Mutex<BTreeMap<(String, Digest), Quarantined>>>);

/// A version that is not run any more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quarantined {
    /// Whose it is.
    pub tenant: String,
    /// What it was called when it crashed a worker.
    pub program: String,
    /// The digest of its component.
    pub sha256: Digest,
    /// When it was found out.
    pub since: Timestamp,
}

impl Quarantine {
    /// Adds a version.
    pub(super) fn add(&self, tenant: &str, program: &str, version: Digest) {
        let found = Quarantined {
            tenant: tenant.to_owned(),
            program: program.to_owned(),
            sha256: version,
            since: Timestamp::now(),
        };
        let mut versions = self.lock();
        versions
            .entry((tenant.to_owned(), version))
            .or_insert(found);
        count(versions.len());
    }

    /// Whether a version is one of them.
    pub(super) fn holds(&self, tenant: &str, version: Digest) -> bool {
        self.lock().contains_key(&(tenant.to_owned(), version))
    }

    /// All of them, by tenant.
    pub(super) fn list(&self) -> Vec<Quarantined> {
        self.lock().values().cloned().collect()
    }

    /// Has a version run again.
    pub(super) fn lift(&self, tenant: &str, version: Digest) -> Option<Quarantined> {
        let mut versions = self.lock();
        let lifted = versions.remove(&(tenant.to_owned(), version))?;
        count(versions.len());
        Some(lifted)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, Digest), Quarantined>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(versions: usize) {
    gauge!("realm_programs_quarantined").set(versions as f64);
}
