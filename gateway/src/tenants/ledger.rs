//! What was used: of which tenant, with which key, of which model. Kept for as long as the process
//! runs, and written line by line for those who bill.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use metrics_exporter_prometheus::formatting::{
    sanitize_label_value, write_help_line, write_type_line,
};
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

/// Tenants that metrics name, and what all others are called.
const NAMED: usize = 1000;
const OTHER: &str = "other";

/// How a request ended. Of several sequences, the last of these that one of them came to counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has its answer.
    Completed,
    /// Nobody waited for it any more.
    Cancelled,
    /// It could not go on.
    Failed,
}

/// Whose a request is, and what it asks of whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Account {
    /// The tenant's name.
    pub tenant: String,
    /// How its key begins, where there are keys.
    pub key: Option<String>,
    /// The model's name.
    pub model: String,
}

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Used {
    /// Tokens of prompts, each prompt once however many choices it has.
    pub prompt_tokens: u64,
    /// Those of them that were computed before.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub completion_tokens: u64,
    /// Time of the device: of each step, the part that was for this.
    #[serde(serialize_with = "seconds", rename = "device_seconds")]
    pub device: Duration,
    /// Time until the first tokens were computed; of several sequences, until all had some.
    #[serde(serialize_with = "seconds", rename = "queue_seconds")]
    pub queue: Duration,
}

impl Used {
    fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
        self.device += other.device;
        self.queue += other.queue;
    }
}

/// A request that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Entry {
    pub(super) time: Timestamp,
    /// As the answer has it.
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) account: Account,
    /// The program that answered, if one did: not in the sums, as its tenant thinks up its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) program: Option<String>,
    pub(super) outcome: Outcome,
    pub(super) sequences: usize,
    #[serde(flatten)]
    pub(super) used: Used,
    /// From its admission to its end.
    #[serde(serialize_with = "seconds", rename = "seconds")]
    pub(super) lasted: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // To the microsecond: what is finer is noise.
    serializer.serialize_f64(time.as_micros() as f64 / 1e6)
}

/// Requests by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Requests {
    completed: u64,
    cancelled: u64,
    failed: u64,
}

impl Requests {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Completed => self.completed += 1,
            Outcome::Cancelled => self.cancelled += 1,
            Outcome::Failed => self.failed += 1,
        }
    }
}

/// The sums of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Sums {
    requests: Requests,
    #[serde(flatten)]
    used: Used,
}

/// The sums of a tenant, over all keys and models.
#[derive(Debug, Clone, Copy, Default)]
struct TenantSums {
    sums: Sums,
    /// Requests above a limit.
    limited: u64,
    /// Requests that were refused for anything else.
    refused: u64,
}

#[derive(Debug, Default)]
struct Books {
    accounts: BTreeMap<Account, Sums>,
    /// In the order in which they were seen first.
    tenants: Vec<(String, TenantSums)>,
    places: HashMap<String, usize>,
}

impl Books {
    fn tenant(&mut self, name: &str) -> &mut TenantSums {
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => {
                let place = self.tenants.len();
                self.tenants.push((name.to_owned(), TenantSums::default()));
                self.places.insert(name.to_owned(), place);
                place
            }
        };
        &mut self.tenants[place].1
    }
}

/// All that was used since the process started.
#[derive(Debug)]
pub struct Ledger {
    since: Timestamp,
    /// Where a line is written for each request that is over.
    log: Option<PathBuf>,
    books: Mutex<Books>,
}

impl Ledger {
    /// Without entries. A `log` gets a line for each that comes.
    ///
    /// # Errors
    /// If nothing can be written to the log.
    pub fn new(log: Option<PathBuf>) -> io::Result<Self> {
        if let Some(path) = &log {
            open(path)?;
        }
        Ok(Ledger {
            since: Timestamp::now(),
            log,
            books: Mutex::default(),
        })
    }

    /// Says what [`new`](Self::new) would say of a log, and leaves none where there is none.
    ///
    /// # Errors
    /// If nothing can be written to it.
    pub fn check(log: &Path) -> io::Result<()> {
        let there = OpenOptions::new().append(true).open(log);
        let folder = match there {
            Err(error) if error.kind() == io::ErrorKind::NotFound => log.parent(),
            there => return there.map(drop),
        };
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        Ok(access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?)
    }

    /// A request is over. When this returns, its line will be read by all who open the log, whatever
    /// becomes of this process.
    pub(super) fn close(&self, entry: &Entry) {
        if let Some(path) = &self.log
            && let Err(error) = write(path, entry)
        {
            let path = path.display();
            let entry = json(entry);
            tracing::error!(%error, %path, entry, "cannot write to the usage log");
        }
        let mut books = self.lock();
        let account = match books.accounts.get_mut(&entry.account) {
            Some(sums) => sums,
            None => books.accounts.entry(entry.account.clone()).or_default(),
        };
        account.requests.count(entry.outcome);
        account.used.add(&entry.used);
        let tenant = &mut books.tenant(&entry.account.tenant).sums;
        tenant.requests.count(entry.outcome);
        tenant.used.add(&entry.used);
    }

    /// A request was above a limit of its tenant, or of the model's queue.
    pub fn limited(&self, tenant: &str) {
        self.lock().tenant(tenant).limited += 1;
    }

    /// A request was refused before it began, for anything but a limit.
    pub fn refused(&self, tenant: &str) {
        self.lock().tenant(tenant).refused += 1;
    }

    /// All accounts, as JSON.
    pub fn report(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            account: &'a Account,
            #[serde(flatten)]
            sums: &'a Sums,
        }
        let accounts = self.lock().accounts.clone();
        let usage = accounts.iter();
        let usage: Vec<_> = usage
            .map(|(account, sums)| Line { account, sums })
            .collect();
        serde_json::json!({"since": self.since, "usage": usage})
    }

    /// The sums of each tenant, as Prometheus has them.
    pub fn metrics(&self) -> String {
        let tenants = {
            let books = self.lock();
            let (named, rest) = books.tenants.split_at(books.tenants.len().min(NAMED));
            let mut tenants = named.to_vec();
            if !rest.is_empty() {
                let mut other = TenantSums::default();
                for (_, sums) in rest {
                    other.add(sums);
                }
                match tenants.iter_mut().find(|(name, _)| name == OTHER) {
                    Some((_, sums)) => sums.add(&other),
                    None => tenants.push((OTHER.to_owned(), other)),
                }
            }
            tenants
        };
        let mut text = String::new();
        for (name, help, values) in METRICS {
            write_help_line(&mut text, name, None, None, help);
            write_type_line(&mut text, name, None, None, "counter");
            for (tenant, sums) in &tenants {
                let tenant = sanitize_label_value(tenant);
                for (label, value) in values(sums) {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, r#"{name}{{tenant="{tenant}"{label}}} {value}"#);
                }
            }
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TenantSums {
    fn add(&mut self, other: &Self) {
        let (sum, more) = (&mut self.sums.requests, &other.sums.requests);
        sum.completed += more.completed;
        sum.cancelled += more.cancelled;
        sum.failed += more.failed;
        self.sums.used.add(&other.sums.used);
        self.limited += other.limited;
        self.refused += other.refused;
    }
}

/// A metric of each tenant: its name, what it tells, and its values, with the labels that these have
/// beside the tenant's.
type Metric = (
    &'static str,
    &'static str,
    fn(&TenantSums) -> Vec<(&'static str, f64)>,
);

const METRICS: [Metric; 7] = [
    (
        "realm_tenant_requests_total",
        "Requests of a tenant, by how they ended",
        |tenant| {
            let requests = &tenant.sums.requests;
            vec![
                (r#",outcome="completed""#, requests.completed as f64),
                (r#",outcome="cancelled""#, requests.cancelled as f64),
                (r#",outcome="failed""#, requests.failed as f64),
                (r#",outcome="limited""#, tenant.limited as f64),
                (r#",outcome="refused""#, tenant.refused as f64),
            ]
        },
    ),
    (
        "realm_tenant_prompt_tokens_total",
        "Tokens of a tenant's prompts",
        |tenant| vec![("", tenant.sums.used.prompt_tokens as f64)],
    ),
    (
        "realm_tenant_cached_tokens_total",
        "Those of them that were computed before",
        |tenant| vec![("", tenant.sums.used.cached_tokens as f64)],
    ),
    (
        "realm_tenant_completion_tokens_total",
        "Tokens generated for a tenant",
        |tenant| vec![("", tenant.sums.used.completion_tokens as f64)],
    ),
    (
        "realm_tenant_device_seconds_total",
        "Time of the device that a tenant's requests took",
        |tenant| vec![("", tenant.sums.used.device.as_secs_f64())],
    ),
    (
        "realm_tenant_queue_seconds_total",
        "Time until the first tokens of a tenant's requests were computed",
        |tenant| vec![("", tenant.sums.used.queue.as_secs_f64())],
    ),
    (
        "realm_tenant_limited_total",
        "Requests of a tenant that were above a limit",
        |tenant| vec![("", tenant.limited as f64)],
    ),
];

fn json(entry: &Entry) -> String {
    // Nothing in an entry can fail to be written.
    serde_json::to_string(entry).unwrap_or_default()
}

/// The file is opened for each line, so that it can be moved away at any time.
fn write(path: &Path, entry: &Entry) -> io::Result<()> {
    // In one call: several gateways may write to one file.
    open(path)?.write_all((json(entry) + "\n").as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tenant: &str, outcome: Outcome) -> Entry {
        Entry {
            time: Timestamp::UNIX_EPOCH,
            id: "cmpl-1".to_owned(),
            account: Account {
                tenant: tenant.to_owned(),
                key: Some("sk-12345678".to_owned()),
                model: "m".to_owned(),
            },
            program: None,
            outcome,
            sequences: 2,
            used: Used {
                prompt_tokens: 7,
                cached_tokens: 4,
                completion_tokens: 3,
                device: Duration::from_micros(1_500),
                queue: Duration::from_millis(20),
            },
            lasted: Duration::from_secs(2),
        }
    }

    #[test]
    fn each_request_is_a_line_and_part_of_a_sum() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("usage.jsonl");
        let ledger = Ledger::new(Some(path.clone())).expect("writes");
        ledger.close(&entry("acme", Outcome::Completed));
        // Somebody rotates it.
        let moved = dir.path().join("usage.1.jsonl");
        std::fs::rename(&path, &moved).expect("moves");
        ledger.close(&entry("acme", Outcome::Failed));
        let lines = [moved, path].map(|path| std::fs::read_to_string(path).expect("is there"));
        let first: serde_json::Value = serde_json::from_str(&lines[0]).expect("one line of JSON");
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00Z", "id": "cmpl-1", "tenant": "acme", "key": "sk-12345678",
            "model": "m", "outcome": "completed", "sequences": 2, "prompt_tokens": 7,
            "cached_tokens": 4, "completion_tokens": 3, "device_seconds": 0.0015,
            "queue_seconds": 0.02, "seconds": 2.0,
        });
        assert_eq!(first, expected);
        assert!(lines[1].contains(r#""outcome":"failed""#) && lines[1].ends_with("}\n"));

        let report = ledger.report();
        let expected = serde_json::json!([{
            "tenant": "acme", "key": "sk-12345678", "model": "m",
            "requests": {"completed": 1, "cancelled": 0, "failed": 1}, "prompt_tokens": 14,
            "cached_tokens": 8, "completion_tokens": 6, "device_seconds": 0.003,
            "queue_seconds": 0.04,
        }]);
        assert_eq!(report["usage"], expected);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_seen_at_once_and_keeps_nobody_from_the_sums() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Ledger::new(Some(dir.path().to_owned())).is_err());
        let folder = dir.path().join("gone");
        std::fs::create_dir(&folder).expect("creates");
        let ledger = Ledger::new(Some(folder.join("usage.jsonl"))).expect("writes");
        std::fs::remove_dir_all(folder).expect("removes");
        ledger.close(&entry("acme", Outcome::Completed));
        assert_eq!(ledger.report()["usage"][0]["requests"]["completed"], 1);
    }

    #[test]
    fn metrics_name_the_first_thousand_tenants() {
        let ledger = Ledger::new(None).expect("nothing to write");
        for number in 0..NAMED + 2 {
            ledger.close(&entry(&format!("t{number}"), Outcome::Completed));
        }
        ledger.limited("t0");
        ledger.limited("t1001");
        ledger.refused("a\"b");
        let text = ledger.metrics();
        for line in [
            r#"realm_tenant_requests_total{tenant="t0",outcome="completed"} 1"#,
            r#"realm_tenant_requests_total{tenant="t0",outcome="limited"} 1"#,
            r#"realm_tenant_requests_total{tenant="other",outcome="completed"} 2"#,
            r#"realm_tenant_requests_total{tenant="other",outcome="refused"} 1"#,
            r#"realm_tenant_limited_total{tenant="other"} 1"#,
            r#"realm_tenant_prompt_tokens_total{tenant="other"} 14"#,
            r#"realm_tenant_device_seconds_total{tenant="t999"} 0.0015"#,
            "# TYPE realm_tenant_queue_seconds_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{}", &text[..2000]);
        }
        assert!(!text.contains("t1000") && !text.contains("a\\\"b"));
    }
}
