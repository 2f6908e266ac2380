//! The Prometheus that the tests hold `deploy` against: the one that is installed, or one that Go
//! makes of pinned, verified source, once, in the cache that all checkouts of this user share.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::libtorch::{cache_folder, keep};
use crate::workspace::on_path;

const VERSION: &str = "0.316.0";
/// The oldest Go that builds it.
const GO: &str = "1.26.7";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The folder of `prometheus` and `promtool`, which are built first if they have to be; none if
/// there is no Go to build them with.
pub(crate) fn ensure() -> anyhow::Result<Option<PathBuf>> {
    let paths = env::var_os("PATH").unwrap_or_default();
    if let Some(installed) = env::split_paths(&paths).find(|folder| is_complete(folder)) {
        return Ok(Some(installed));
    }
    let folder = cache_folder()?.join(format!("prometheus-{VERSION}"));
    if is_complete(&folder) {
        return Ok(Some(folder));
    }
    if !on_path("go") {
        return Ok(None);
    }
    println!("building Prometheus {VERSION}, once for this user; it takes a few minutes");
    keep("Prometheus", &folder, is_complete, build)?;
    Ok(Some(folder))
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
    let output = go.output().context("cannot start go")?;
    if !output.status.success() {
        bail!(
            "go cannot build Prometheus {VERSION}: that needs Go {GO} or later (`go version`) and a module proxy that \
             can be reached (`go env GOPROXY`); a Prometheus on the PATH is used instead"
        );
    }
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    PROGRAMS.iter().all(|name| folder.join(name).is_file())
}
