//! What a `realm.toml` says of tenants.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use realm_shared::wire::Allotment;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::ByteSize;
use crate::batching::{Allowance, Priority};
use crate::programs::ProgramName;

/// Tokens that a tenant's programs save of a model where nothing is said.
const SAVED_TOKENS: usize = 1 << 20;
/// How long an answer of a program may take where nothing is said.
const WALL: Duration = Duration::from_secs(600);
/// How many programs a tenant may store where nothing is said.
const PROGRAMS: usize = 64;

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
    /// Most programs that it may store.
    pub programs: Option<usize>,
    /// The program that steers its generations unless a request names another.
    pub processor: Option<ProgramName>,
    /// Most memory of an instance of a program.
    #[serde(deserialize_with = "program_memory")]
    pub program_memory: Option<ByteSize>,
    /// Most processor time of one call of a program, in milliseconds.
    #[serde(deserialize_with = "program_call")]
    pub program_call_ms: Option<u64>,
    /// Most seconds without a call of a processor that ends, of whatever the machine does.
    #[serde(deserialize_with = "program_call_seconds")]
    pub program_call_seconds: Option<u32>,
    /// Most bytes that one call of a program hands to the host.
    #[serde(deserialize_with = "program_host_call")]
    pub program_host_call: Option<ByteSize>,
    /// Most tensors that one program holds at once; a sixteenth as many matchers.
    #[serde(deserialize_with = "program_handles")]
    pub program_handles: Option<u32>,
    /// Most instances of its programs at once in one worker.
    pub program_instances: Option<NonZeroU32>,
    /// Most sequences that one program has at once.
    #[serde(deserialize_with = "program_sequences")]
    pub program_sequences: Option<NonZeroU32>,
    /// Most bytes that the tensors of one program have at once.
    #[serde(deserialize_with = "program_tensors")]
    pub program_tensors: Option<ByteSize>,
    /// Most bytes of text that one program gives out.
    #[serde(deserialize_with = "program_output")]
    pub program_output: Option<ByteSize>,
    /// Most bytes that one instance writes to the log.
    #[serde(deserialize_with = "program_log")]
    pub program_log: Option<ByteSize>,
    /// Most tokens that its programs have saved at once of one model.
    #[serde(deserialize_with = "program_saved_tokens")]
    pub program_saved_tokens: Option<usize>,
    /// Most seconds in which a program answers a request.
    #[serde(deserialize_with = "program_seconds")]
    pub program_seconds: Option<u64>,
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

fn program_memory<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ByteSize>, D::Error> {
    let is_size = |size: &ByteSize| (64 << 10..=64 << 20).contains(&size.0);
    checked(d, is_size, "a program's memory is between 64KiB and 64MiB")
}

fn program_call<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let is_time = |time: &u64| (1..=10_000).contains(time);
    checked(
        d,
        is_time,
        "a program's call may take between 1 and 10000 ms",
    )
}

fn program_call_seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    let is_time = |time: &u32| (1..=3600).contains(time);
    checked(
        d,
        is_time,
        "a program's call may take between 1 and 3600 seconds of wall time",
    )
}

fn program_host_call<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ByteSize>, D::Error> {
    let is_size = |size: &ByteSize| (64 << 10..=64 << 20).contains(&size.0);
    checked(
        d,
        is_size,
        "a program's call hands between 64KiB and 64MiB to the host",
    )
}

fn program_handles<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    let is_count = |count: &u32| (1..=65_536).contains(count);
    checked(
        d,
        is_count,
        "a program may hold between 1 and 65536 tensors",
    )
}

fn program_tensors<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ByteSize>, D::Error> {
    let is_size = |size: &ByteSize| size.0 <= 1 << 30;
    checked(d, is_size, "a program's tensors have at most 1GiB")
}

fn program_output<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ByteSize>, D::Error> {
    let is_size = |size: &ByteSize| size.0 <= 16 << 20;
    checked(d, is_size, "a program's answer has at most 16MiB")
}

fn program_log<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ByteSize>, D::Error> {
    let is_size = |size: &ByteSize| size.0 <= 16 << 20;
    checked(d, is_size, "a program logs at most 16MiB")
}

fn program_saved_tokens<'de, D: Deserializer<'de>>(d: D) -> Result<Option<usize>, D::Error> {
    let is_count = |&count: &usize| count <= 16 << 20;
    checked(d, is_count, "programs may save at most 16777216 tokens")
}

fn program_seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let is_time = |time: &u64| (1..=86_400).contains(time);
    checked(
        d,
        is_time,
        "a program's answer may take between 1 and 86400 seconds",
    )
}

fn program_sequences<'de, D: Deserializer<'de>>(d: D) -> Result<Option<NonZeroU32>, D::Error> {
    let is_count = |count: &NonZeroU32| count.get() <= 64;
    checked(d, is_count, "a program may have between 1 and 64 sequences")
}

fn checked<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    is_right: impl Fn(&T) -> bool,
    expected: &str,
) -> Result<Option<T>, D::Error> {
    let value = T::deserialize(deserializer)?;
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
            programs: self.programs.or(d.programs),
            processor: self.processor.or_else(|| d.processor.clone()),
            program_memory: self.program_memory.or(d.program_memory),
            program_call_ms: self.program_call_ms.or(d.program_call_ms),
            program_call_seconds: self.program_call_seconds.or(d.program_call_seconds),
            program_host_call: self.program_host_call.or(d.program_host_call),
            program_handles: self.program_handles.or(d.program_handles),
            program_instances: self.program_instances.or(d.program_instances),
            program_sequences: self.program_sequences.or(d.program_sequences),
            program_tensors: self.program_tensors.or(d.program_tensors),
            program_output: self.program_output.or(d.program_output),
            program_log: self.program_log.or(d.program_log),
            program_saved_tokens: self.program_saved_tokens.or(d.program_saved_tokens),
            program_seconds: self.program_seconds.or(d.program_seconds),
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

    /// What its programs may take in a worker.
    pub fn allotment(&self) -> Allotment {
        let usual = Allotment::default();
        let bytes = |size: Option<ByteSize>, usual| size.map_or(usual, |size| size.0);
        let count = |count: Option<NonZeroU32>, usual| count.map_or(usual, NonZeroU32::get);
        Allotment {
            memory: bytes(self.program_memory, usual.memory),
            call_micros: self
                .program_call_ms
                .map_or(usual.call_micros, |ms| ms * 1000),
            patience_millis: self
                .program_call_seconds
                .map_or(usual.patience_millis, |seconds| seconds * 1000),
            instances: count(self.program_instances, usual.instances),
            sequences: count(self.program_sequences, usual.sequences),
            handles: self.program_handles.unwrap_or(usual.handles),
            tensors: bytes(self.program_tensors, usual.tensors),
            handed: bytes(self.program_host_call, usual.handed),
            output: bytes(self.program_output, usual.output),
            log: bytes(self.program_log, usual.log),
            ..usual
        }
    }

    /// How many tokens its programs may have saved, of each model.
    pub fn saved_tokens(&self) -> usize {
        self.program_saved_tokens.unwrap_or(SAVED_TOKENS)
    }

    /// In how much wall time its programs answer.
    pub fn program_wall(&self) -> Duration {
        self.program_seconds.map_or(WALL, Duration::from_secs)
    }

    /// How many programs it may store.
    pub fn most_programs(&self) -> usize {
        self.programs.unwrap_or(PROGRAMS)
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

    /// The default processors that are named, each with the tenant; no tenant where it is for all.
    pub fn processors(&self) -> impl Iterator<Item = (Option<&str>, &ProgramName)> {
        let own = |settings: &&TenantSettings| settings.processor != self.defaults.processor;
        let all = self.named.values().filter(own).chain([&self.defaults]);
        all.filter_map(|settings| Some((settings.id.as_deref(), settings.processor.as_ref()?)))
    }

    /// What a tenant may use; one that is not named, what `[tenant_defaults]` say.
    pub fn of(&self, name: &str) -> &TenantSettings {
        self.named.get(name).unwrap_or(&self.defaults)
    }
}
