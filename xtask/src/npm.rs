//! Node.js, and packages of npm at the versions of a lock file.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::packages::{install_once, version};

/// Oldest Node.js that all packages support.
const NODE: u32 = 20;

/// Sees that Node.js and npm are there for `whom`.
pub(crate) fn check(whom: &str) -> anyhow::Result<()> {
    let wanted = format!(
        "{whom} need Node.js {NODE} or later with npm: install them with your package manager"
    );
    match version("node").as_deref() {
        Some([major, ..]) if *major >= NODE => {}
        Some([major, ..]) => bail!("node is Node.js {major}; {wanted}"),
        _ => bail!("node is missing; {wanted}"),
    }
    if version("npm").is_none() {
        bail!("npm is missing; {wanted}");
    }
    Ok(())
}

/// Installs into `folder` what the `package-lock.json` in `source` names.
pub(crate) fn install(folder: &Path, source: &Path) -> anyhow::Result<()> {
    let pins = source.join("package-lock.json");
    install_once(folder, &pins, || {
        fs::create_dir_all(folder)?;
        for name in ["package.json", "package-lock.json"] {
            fs::copy(source.join(name), folder.join(name))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(folder)
            .stdin(Stdio::null());
        let output = npm.output().context("cannot start npm")?;
        if !output.status.success() {
            // npm's own words may name the hosts of a private registry; its code does not.
            let log = String::from_utf8_lossy(&output.stderr);
            let code = log
                .lines()
                .find_map(|line| line.split_once(" code "))
                .map_or("no reason", |(_, code)| code);
            bail!(
                "npm cannot install the packages of {} ({code}): check the network and npm's settings \
                 (`npm config list`)",
                source.display()
            );
        }
        Ok(())
    })
}
