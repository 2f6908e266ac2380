//! What a `realm.toml` says of tenants.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::batching::{Allowance, Priority};

/// What a tenant may use: `[tenant_defaults]`, and each `[[tenant]]`. What is absent is not
/// limited, or as good as everybody's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// The name that API keys give; of a `[[tenant]]` only.
    pub id: Option<String>,
    /// Requests that may start in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens, of prompts and answers, in any minute.
    pub tokens_per_minute: Option<NonZeroU64>,
    /// The same in any 24 hours.
    pub tokens_per_day: Option<NonZeroU64>,
    /// Requests at once.
    pub max_concurrent: Option<NonZeroUsize>,
    /// Sequences of its requests that are not over, of all models.
    pub max_queue: Option<NonZeroUsize>,
    /// Longest sequence in tokens.
    pub max_context: Option<NonZeroU32>,
    /// Models that it may use; all, if absent.
    pub models: Option<Vec<String>>,
    /// The best class that its requests may be in, and are in unless they ask for a lower one.
    pub priority: Option<Priority>,
    /// Its share of a model beside others', in proportion to theirs; 1, if absent.
    #[serde(deserialize_with = "weight")]
    pub weight: Option<f64>,
    /// Most of a model's KV blocks that its sequences may hold, from 0 to 1; all, if absent.
    #[serde(deserialize_with = "share")]
    pub kv_share: Option<f64>,
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let is_weight = |value: &f64| (0.001..=1000.0).contains(value);
    checked(
        deserializer,
        is_weight,
        "a weight is between 0.001 and 1000",
    )
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let is_share = |&value: &f64| value > 0.0 && value <= 1.0;
    checked(
        deserializer,
        is_share,
        "a share is more than 0 and at most 1",
    )
}

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    is_right: impl Fn(&f64) -> bool,
    expected: &str,
) -> Result<Option<f64>, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let right = Some(value).filter(is_right);
    right.map(Some).ok_or_else(|| D::Error::custom(expected))
}

impl TenantSettings {
    /// These, with what is absent as in `defaults`.
    fn over(self, defaults: &Self) -> Self {
        let d = defaults;
        TenantSettings {
            id: self.id,
            requests_per_minute: self.requests_per_minute.or(d.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(d.tokens_per_minute),
            tokens_per_day: self.tokens_per_day.or(d.tokens_per_day),
            max_concurrent: self.max_concurrent.or(d.max_concurrent),
            max_queue: self.max_queue.or(d.max_queue),
            max_context: self.max_context.or(d.max_context),
            models: self.models.or_else(|| d.models.clone()),
            priority: self.priority.or(d.priority),
            weight: self.weight.or(d.weight),
            kv_share: self.kv_share.or(d.kv_share),
        }
    }

    /// What its sequences may have beside others'.
    pub fn allowance(&self) -> Allowance {
        let all = Allowance::default();
        Allowance {
            weight: self.weight.unwrap_or(all.weight),
            kv_share: self.kv_share.unwrap_or(all.kv_share),
        }
    }

    /// The best class that its requests may be in.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    /// Whether it may use a model.
    pub fn allows(&self, model: &str) -> bool {
        let models = self.models.as_ref();
        models.is_none_or(|models| models.iter().any(|allowed| allowed == model))
    }
}

/// What every tenant may use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TenantTable {
    defaults: TenantSettings,
    named: HashMap<String, TenantSettings>,
}

impl TenantTable {
    /// Puts the sections of a file together. An error tells which place in the file is wrong,
    /// and how.
    pub(super) fn new(
        defaults: Option<Spanned<TenantSettings>>,
        tenants: Vec<Spanned<TenantSettings>>,
    ) -> Result<Self, (usize, String)> {
        let (place, defaults) = match defaults {
            Some(defaults) => (defaults.span().start, defaults.into_inner()),
            None => Default::default(),
        };
        if defaults.id.is_some() {
            let message =
                "`id` in [tenant_defaults]: these are everybody's; name a tenant in [[tenant]]";
            return Err((place, message.to_owned()));
        }
        let mut named = HashMap::new();
        for tenant in tenants {
            let place = tenant.span().start;
            let tenant = tenant.into_inner();
            let Some(id) = tenant.id.clone().filter(|id| !id.is_empty()) else {
                return Err((place, "a [[tenant]] without `id`".to_owned()));
            };
            if named.insert(id.clone(), tenant.over(&defaults)).is_some() {
                return Err((place, format!("a second [[tenant]] with the id `{id}`")));
            }
        }
        Ok(TenantTable { defaults, named })
    }

    /// Models that are named for tenants and not among those that are served, each with the tenant;
    /// no tenant where it is for all.
    pub fn unserved<'a>(
        &'a self,
        served: &'a [&str],
    ) -> impl Iterator<Item = (Option<&'a str>, &'a str)> {
        let own = |settings: &&TenantSettings| settings.models != self.defaults.models;
        let named = self.named.values().filter(own);
        let models = named.chain([&self.defaults]).flat_map(|settings| {
            let models = settings.models.iter().flatten();
            models.map(|model| (settings.id.as_deref(), model.as_str()))
        });
        models.filter(|(_, model)| !served.contains(model))
    }

    /// What a tenant may use; one that is not named, what `[tenant_defaults]` say.
    pub fn of(&self, name: &str) -> &TenantSettings {
        self.named.get(name).unwrap_or(&self.defaults)
    }
}
