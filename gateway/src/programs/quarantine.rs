//! Versions of programs that are not run any more, because they crashed workers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::gauge;

use crate::digest::Digest;

/// Which versions they are, each a tenant's, by the digest of the component; a handle. What another tenant has
/// stored is another version, also where the component is the same: what one sends it must not cost the other.
///
/// It lasts as long as the gateway.
#[derive(Debug, Clone, Default)]
pub struct Quarantine(Arc<Mutex<HashSet<(String, Digest)>>>);

impl Quarantine {
    /// Adds a version.
    pub(super) fn add(&self, tenant: &str, version: Digest) {
        let mut versions = self.lock();
        versions.insert((tenant.to_owned(), version));
        gauge!("realm_programs_quarantined").set(versions.len() as f64);
    }

    /// Whether a version is one of them.
    pub(super) fn holds(&self, tenant: &str, version: Digest) -> bool {
        self.lock().contains(&(tenant.to_owned(), version))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(String, Digest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
