//! `realm api-key`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, bail};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp, Unit};

use crate::tenants::{KeyFile, KeyRecord, prefix};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a key for a tenant, and show it: this once, for only its digest is kept
    Generate(Generate),
    /// Show what keys there are
    List(List),
    /// Let a key be used again
    Enable(Named),
    /// Keep a key from being used, from the next second on
    Disable(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// File of the keys [default: `api_keys` of the config file]
    #[arg(long, env = "REALM_API_KEYS", value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    /// Tenant whose key it is to be
    #[arg(long, value_name = "ID")]
    tenant: String,
    /// What its owner calls it
    #[arg(long)]
    name: String,
    /// When it ends: a date, a time such as 2027-01-31T12:00Z, or a span such as 30d or 12h
    /// [default: never]
    #[arg(long, value_name = "WHEN")]
    expires: Option<Expiry>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// How the key begins, as `list` shows it
    key: String,
    #[command(flatten)]
    place: Place,
}

/// When a key ends.
#[derive(Debug, Clone, Copy)]
struct Expiry(Timestamp);

impl FromStr for Expiry {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let now = Timestamp::now();
        let end = if let Ok(time) = s.parse::<Timestamp>() {
            time
        } else if let Ok(date) = s.parse::<Date>() {
            let start = date.to_zoned(TimeZone::UTC).map_err(|e| e.to_string())?;
            start.timestamp()
        } else {
            let span: Span = s.parse().map_err(|_| {
                format!("`{s}` is no date, no time with a zone and no span such as 30d or 12h")
            })?;
            // A day is 24 hours; a month has no length of its own.
            if span.get_years() != 0 || span.get_months() != 0 {
                return Err(format!("`{s}`: give days instead of months or years"));
            }
            let span = span
                .total((Unit::Second, SpanRelativeTo::days_are_24_hours()))
                .map_err(|e| e.to_string())?;
            let later = std::time::Duration::try_from_secs_f64(span);
            let later = later.map_err(|_| format!("`{s}` is not in the future"))?;
            now.checked_add(later).map_err(|e| e.to_string())?
        };
        match end > now {
            true => Ok(Expiry(end)),
            false => Err(format!("`{s}` is not in the future")),
        }
    }
}

/// `configured` is the file that the config names.
pub(super) fn api_key(command: Command, configured: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Generate(args) => generate(&args.place.find(configured)?, &args),
        Command::List(args) => list(&args.place.find(configured)?, args.json),
        Command::Enable(args) => switch(&args.place.find(configured)?, &args.key, true),
        Command::Disable(args) => switch(&args.place.find(configured)?, &args.key, false),
    }
}

impl Place {
    fn find(&self, configured: Option<PathBuf>) -> anyhow::Result<PathBuf> {
        let file = self.file.clone().or(configured);
        file.context("which file of keys? Give --file, or `api_keys` in the file of --config")
    }
}

fn generate(path: &Path, args: &Generate) -> anyhow::Result<ExitCode> {
    if args.tenant.is_empty() {
        bail!("--tenant is empty: name the tenant whose key it is to be");
    }
    let expires = args.expires.map(|Expiry(end)| end);
    let key = KeyFile::edit(path, |file| {
        file.add(&args.tenant, &args.name, expires)
            .context("the system has no random numbers")
    })?;
    // The key alone, for scripts; what else there is to say beside it.
    writeln!(std::io::stdout(), "{}", key.reveal()).with_context(|| {
        let prefix = prefix(key.reveal()).unwrap_or_default();
        format!("the key was made and cannot be shown: disable {prefix}")
    })?;
    if std::io::stderr().is_terminal() {
        let tenant = &args.tenant;
        eprintln!(
            "A key of `{tenant}`. Keep it: it is shown this once, and cannot be found out again."
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn list(path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let file = KeyFile::read(path)?;
    let now = Timestamp::now();
    let mut out = std::io::stdout().lock();
    if as_json {
        let keys: Vec<_> = file.keys.iter().map(|key| as_value(key, now)).collect();
        writeln!(out, "{:#}", serde_json::Value::from(keys))?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = |of: fn(&KeyRecord) -> &str| {
        let widths = file.keys.iter().map(|key| of(key).chars().count());
        widths.max().unwrap_or(0).max("TENANT".len())
    };
    let (tenants, names) = (width(|key| &key.tenant), width(|key| &key.name));
    writeln!(
        out,
        "{:11}  {:8}  {:tenants$}  {:names$}  {:20}  EXPIRES",
        "KEY", "STATE", "TENANT", "NAME", "CREATED"
    )?;
    for key in &file.keys {
        let expires = key.expires.map_or("never".to_owned(), seconds);
        writeln!(
            out,
            "{}  {:8}  {:tenants$}  {:names$}  {}  {expires}",
            key.prefix,
            key.state(now),
            key.tenant,
            key.name,
            seconds(key.created),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn as_value(key: &KeyRecord, now: Timestamp) -> serde_json::Value {
    serde_json::json!({
        "key": key.prefix,
        "tenant": key.tenant,
        "name": key.name,
        "state": key.state(now).to_string(),
        "created": key.created,
        "expires": key.expires,
    })
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn switch(path: &Path, key: &str, enabled: bool) -> anyhow::Result<ExitCode> {
    // A whole key names itself too.
    let wanted =
        prefix(key).with_context(|| format!("`{key}` names no key: give what `list` shows"))?;
    KeyFile::edit(path, |file| {
        let found = file.keys.iter_mut().find(|key| key.prefix == wanted);
        let key =
            found.with_context(|| format!("no key in {} begins with {wanted}", path.display()))?;
        key.enabled = enabled;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_key_is_a_date_a_time_or_a_span() {
        let seconds = |s: &str| {
            let Expiry(end) = s.parse().unwrap_or_else(|e| panic!("{e}"));
            end.as_second()
        };
        assert_eq!(seconds("2100-01-01"), 4_102_444_800);
        assert_eq!(seconds("2100-01-01T01:00+01:00"), 4_102_444_800);
        let now = Timestamp::now().as_second();
        for (span, length) in [("30d", 30 * 86_400), ("12h", 12 * 3600), ("1w", 7 * 86_400)] {
            assert!((seconds(span) - now - length).abs() < 60, "{span}");
        }
        for bad in ["", "soon", "2001-01-01", "-3d", "0s", "1mo", "2y"] {
            assert!(bad.parse::<Expiry>().is_err(), "{bad}");
        }
    }
}
