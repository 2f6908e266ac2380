//! Prometheus, in the cache that all checkouts of this user share. Go fetches its pinned source,
//! verified, and builds it, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, bail};

use crate::libtorch::cache_folder;
use crate::workspace::on_path;

const VERSION: &str = "0.316.0";
/// The oldest Go that builds it.
const GO: &str = "1.26.7";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Sees that Prometheus is there, or Go to build it with.
pub(crate) fn check() -> anyhow::Result<()> {
    if !is_complete(&folder()?) && !on_path("go") {
        bail!(
            "go is missing, with which the tests build Prometheus: install Go {GO} or later with your package manager"
        );
    }
    Ok(())
}

/// The folder of `prometheus` and `promtool`, which are built first if they have to be.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    if is_complete(&folder) {
        return Ok(folder);
    }
    println!("building Prometheus {VERSION}, once for this user; it takes a few minutes");
    // Built beside its place and moved there in one step, whoever else does the same.
    let partial = folder.with_added_extension(process::id().to_string());
    let built = build(&partial).and_then(|()| match fs::rename(&partial, &folder) {
        Err(_) if is_complete(&folder) => Ok(()),
        result => result.with_context(|| format!("cannot move Prometheus to {}", folder.display())),
    });
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    built.map(|()| folder)
}

fn build(bin: &Path) -> anyhow::Result<()> {
    let mut go = Command::new("go");
    // Without what finds servers to scrape in clouds, which is most of it.
    go.args(["install", "-tags", "remove_all_sd"])
        .args(
            PROGRAMS.map(|name| format!("github.com/prometheus/prometheus/cmd/{name}@v{VERSION}")),
        )
        .env("GOBIN", bin)
        // Settings of a user's own that would put the programs elsewhere.
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null());
    // Its own words are not repeated: they may name the hosts of a private proxy.
    let output = go.output().context(
        "cannot start go, with which the tests build Prometheus: install it with your package manager",
    )?;
    if !output.status.success() {
        bail!(
            "go cannot build Prometheus {VERSION}: that needs Go {GO} or later (`go version`) and a module proxy that \
             can be reached (`go env GOPROXY`)"
        );
    }
    Ok(())
}

fn folder() -> anyhow::Result<PathBuf> {
    Ok(cache_folder()?.join(format!("prometheus-{VERSION}")))
}

fn is_complete(folder: &Path) -> bool {
    PROGRAMS.iter().all(|name| folder.join(name).is_file())
}
