//! Who calls, and what they may use.
//!
//! An API key tells whose a request is ([`Keys`]); the settings tell what that tenant may use. All
//! of it is read from files that several gateways may share, and nothing is kept beyond the
//! process.

mod account;
mod key_file;
mod keys;
mod ledger;
mod reservation;
mod turns;
mod window;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use account::{Account, lock};
pub use account::{Left, Limit, OverLimit};
use key_file::LENGTH;
pub use key_file::{KeyFile, KeyFileError, KeyRecord, KeyState, Secret, prefix};
pub use keys::{BadKey, Keys};
pub use ledger::{Ledger, Outcome};
use reservation::Asked;
pub use reservation::{Permit, Reservation};

use crate::batching::TenantId;
use crate::config::{TenantSettings, TenantTable};

/// The tenant that all requests are of where nobody has to show a key.
pub const ANYONE: &str = "anyone";

/// A tenant, from the first request of it that this process sees.
#[derive(Debug)]
pub struct Tenant {
    /// Its number in this process.
    pub id: TenantId,
    /// The name that keys and settings give it.
    pub name: String,
    account: Arc<Mutex<Account>>,
}

impl Tenant {
    fn new(id: TenantId, name: &str, table: &TenantTable) -> Arc<Self> {
        Arc::new(Tenant {
            id,
            name: name.to_owned(),
            account: Arc::new(Mutex::new(Account::new(table.of(name).clone()))),
        })
    }

    /// What it may use now.
    pub fn settings(&self) -> Arc<TenantSettings> {
        lock(&self.account).settings().clone()
    }

    /// Starts a request.
    ///
    /// # Errors
    /// If the tenant has too many, at once or in a minute.
    pub fn start(&self) -> Result<Permit, OverLimit> {
        Permit::new(&self.account)
    }

    /// What is left of its requests and of its tokens by the minute, where these are limited.
    pub fn left(&self) -> (Option<Left>, Option<Left>) {
        let (now, mut account) = (Instant::now(), lock(&self.account));
        (account.requests_left(now), account.tokens_left(now))
    }

    /// Tokens that each of so many choices may have after a prompt, where the request does not say;
    /// at least one. All that the tenant has left, but not less than half of its limit: rather than
    /// a few words, it is to get an answer later.
    pub fn most_output(&self, prompt: usize, choices: usize) -> u32 {
        let share = lock(&self.account).share(Instant::now());
        let output = share.saturating_sub(prompt as u64) / choices.max(1) as u64;
        u32::try_from(output).unwrap_or(u32::MAX).max(1)
    }
}

/// Whose a request is.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// The key that was shown, where there are keys.
    pub key: Option<Arc<KeyRecord>>,
    /// Where it is written what the request uses.
    ledger: Arc<Ledger>,
}

impl Caller {
    /// Reserves what a request may use: all of its prompts, and as many tokens as may be generated.
    /// `id` is the name that its answer has.
    ///
    /// # Errors
    /// If that is more than the tenant may use now.
    pub fn reserve(
        &self,
        id: String,
        model: &str,
        program: Option<&str>,
        sequences: usize,
        tokens: u64,
    ) -> Result<Reservation, OverLimit> {
        let asked = Asked {
            id,
            account: ledger::Account {
                tenant: self.tenant.name.clone(),
                key: self.key.as_ref().map(|key| key.prefix.clone()),
                model: model.to_owned(),
            },
            program: program.map(str::to_owned),
            sequences,
            tokens,
        };
        Reservation::new(&self.tenant.account, &self.ledger, asked)
    }
}

/// A request shows no key that is any good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// It shows none.
    #[error("no API key")]
    Missing,
    /// It shows this one.
    #[error("API key {}: {why}", .prefix.as_deref().unwrap_or("(not one of ours)"))]
    Bad {
        /// How it begins, if it looks like a key.
        prefix: Option<String>,
        /// What is wrong with it.
        why: BadKey,
    },
}

/// Who may call, and what each may use.
#[derive(Debug)]
pub struct Access {
    /// Without keys, everybody is one tenant.
    keys: Option<Arc<Keys>>,
    tenants: Mutex<Tenants>,
    ledger: Arc<Ledger>,
}

/// All tenants that were seen.
#[derive(Debug)]
struct Tenants {
    table: TenantTable,
    by_name: HashMap<String, Arc<Tenant>>,
    anyone: Arc<Tenant>,
    last_id: NonZeroU32,
}

impl Access {
    /// With what is configured.
    pub fn new(keys: Option<Arc<Keys>>, table: TenantTable, ledger: Arc<Ledger>) -> Self {
        let anyone = Tenant::new(TenantId::ANYONE, ANYONE, &table);
        Access {
            keys,
            ledger,
            tenants: Mutex::new(Tenants {
                table,
                by_name: HashMap::new(),
                last_id: anyone.id.0,
                anyone,
            }),
        }
    }

    /// Whose a request with these headers is.
    ///
    /// # Errors
    /// If it is to show a key, and shows none that is any good.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Unauthenticated> {
        let Some(keys) = &self.keys else {
            let tenant = self.lock().anyone.clone();
            return Ok(self.call(tenant, None));
        };
        let shown = bearer(headers).ok_or(Unauthenticated::Missing)?;
        let key = keys.check(shown).map_err(|why| Unauthenticated::Bad {
            // What is no key of ours may be somebody's password.
            prefix: prefix(shown)
                .filter(|_| shown.len() == LENGTH)
                .map(str::to_owned),
            why,
        })?;
        let tenant = self.lock().get(&key.tenant);
        Ok(self.call(tenant, Some(key)))
    }

    fn call(&self, tenant: Arc<Tenant>, key: Option<Arc<KeyRecord>>) -> Caller {
        let ledger = self.ledger.clone();
        Caller {
            tenant,
            key,
            ledger,
        }
    }

    /// Where it is written what is used.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// What tenants may use from here on. What runs goes on.
    pub fn configure(&self, table: TenantTable) {
        let mut tenants = self.lock();
        for tenant in tenants.by_name.values().chain([&tenants.anyone]) {
            lock(&tenant.account).configure(table.of(&tenant.name).clone());
        }
        tenants.table = table;
    }

    fn lock(&self) -> MutexGuard<'_, Tenants> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenants {
    fn get(&mut self, name: &str) -> Arc<Tenant> {
        if let Some(tenant) = self.by_name.get(name) {
            return tenant.clone();
        }
        // Keys are made by hand: there are fewer tenants than numbers.
        self.last_id = self.last_id.saturating_add(1);
        let tenant = Tenant::new(TenantId(self.last_id), name, &self.table);
        self.by_name.insert(name.to_owned(), tenant.clone());
        tenant
    }
}

/// The key in `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new(None).expect("nothing to write"))
    }

    fn headers(authorization: &str) -> HeaderMap {
        let value = authorization.parse().expect("a header");
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    #[test]
    fn a_key_tells_the_tenant() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keys.json");
        let keys = ["acme", "acme", "other"].map(|tenant| {
            let add = |file: &mut KeyFile| Ok::<_, anyhow::Error>(file.add(tenant, "ci", None)?);
            KeyFile::edit(&path, add).expect("writes")
        });
        let access = Access::new(
            Some(Keys::open(&path).expect("reads")),
            TenantTable::default(),
            ledger(),
        );
        let tenant = |key: &str| access.caller(&headers(key)).map(|caller| caller.tenant);
        let [first, second, other] = keys.map(|key| {
            let lower = tenant(&format!("bearer  {}", key.reveal())).expect("known");
            let usual = tenant(&format!("Bearer {}", key.reveal())).expect("known");
            assert!(Arc::ptr_eq(&lower, &usual));
            usual
        });
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(
            (first.name.as_str(), other.name.as_str()),
            ("acme", "other")
        );
        let ids = [first.id, other.id, TenantId::ANYONE];
        assert!(ids[0] != ids[1] && !ids[..2].contains(&ids[2]));

        let bad = |prefix: Option<&str>| Unauthenticated::Bad {
            prefix: prefix.map(str::to_owned),
            why: BadKey::Unknown,
        };
        let error = |key: &str| tenant(key).expect_err("refused");
        assert_eq!(error("Basic YTpi"), Unauthenticated::Missing);
        assert_eq!(error("Bearer"), Unauthenticated::Missing);
        assert_eq!(error("Bearer x"), bad(None));
        assert_eq!(error("Bearer sk-12345678xyz"), bad(None));
        let like_ours = format!("Bearer sk-12345678{:x<32}", "");
        assert_eq!(error(&like_ours), bad(Some("sk-12345678")));
        assert_eq!(
            access.caller(&HeaderMap::new()).map(|_| ()),
            Err(Unauthenticated::Missing)
        );
    }

    #[test]
    fn without_keys_all_are_one() {
        let access = Access::new(None, TenantTable::default(), ledger());
        let id = |headers| access.caller(&headers).map(|caller| caller.tenant.id);
        assert_eq!(id(HeaderMap::new()), Ok(TenantId::ANYONE));
        assert_eq!(id(headers("Bearer sk-none")), Ok(TenantId::ANYONE));
    }
}
