//! The images of `docker/` as far as they can be tried without a container engine: their root file
//! systems, run in namespaces by `tests/containers`.

use std::fs;
use std::process::Command;

use anyhow::{Context, bail};

use crate::install::place;
use crate::workspace::{Part, Profile, Workspace};

/// What the script exits with where the system does not let its user make namespaces.
const NO_NAMESPACES: i32 = 77;

/// Runs both, and says whether that could be done.
pub(crate) fn test(workspace: &Workspace) -> anyhow::Result<bool> {
    let scratch = workspace.target.join("containers");
    // What the first stage of each Dockerfile leaves in `/out`.
    let outs = [(Part::Gateway, "gateway-out"), (Part::Worker, "worker-out")]
        .map(|(part, name)| (part, scratch.join(name)));
    for (part, out) in &outs {
        place(workspace, Profile::Dev, *part, &out.join("opt/realm"))?;
        // Where volumes are mounted. The worker has the first two, the gateway the first and the last.
        for folder in ["run/realm", "var/cache/realm", "var/lib/realm"] {
            fs::create_dir_all(out.join(folder))?;
        }
    }
    let status = Command::new("python3")
        .arg(workspace.root.join("tests/containers/containers.py"))
        .arg(scratch.join("run"))
        .args(outs.iter().map(|(_, out)| out))
        .arg(workspace.programs().join("choice.wasm"))
        .status()
        .context("cannot start python3")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(NO_NAMESPACES) => Ok(false),
        _ => bail!("the containers did not do what they should: {status}"),
    }
}
