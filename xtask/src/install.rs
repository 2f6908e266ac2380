//! `cargo xtask install`: the programs in a folder of their own, with the libraries that the worker
//! needs, so that they run without this checkout and the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::workspace::{Part, Profile, Workspace};
use crate::{cuda, libtorch};

/// What to install, and where.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Folder to fill
    dir: PathBuf,
    /// Install only one of the two programs
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// With what a worker needs on an NVIDIA GPU: 2.3 GB more, fetched if it is not there yet
    #[arg(long)]
    cuda: bool,
}

/// Builds a release, and fills the folder.
pub(crate) fn install(args: &Install) -> anyhow::Result<()> {
    let workspace = Workspace::set_up()?;
    let parts = match &args.only {
        Some(only) => slice::from_ref(only),
        None => Part::value_variants(),
    };
    workspace.release(parts)?;
    for part in parts {
        place(&workspace, Profile::Release, *part, &args.dir)?;
    }
    if args.cuda && parts.contains(&Part::Worker) {
        for (library, path) in cuda::libraries(workspace.libtorch())? {
            copy(&path, &args.dir.join(library))?;
        }
    }
    Ok(())
}

/// Puts what was built of a part into a folder.
pub(crate) fn place(
    workspace: &Workspace,
    profile: Profile,
    part: Part,
    dir: &Path,
) -> anyhow::Result<()> {
    let program = |name: &str| copy(&workspace.binary(profile, name), &dir.join(name));
    match part {
        Part::Gateway => program("realm"),
        Part::Worker => {
            program("realm-worker")?;
            // The worker looks for `torch/lib` in its folder, and libtorch for the rest from there.
            let mut libraries = libtorch::libraries(workspace.libtorch());
            libraries.try_for_each(|(library, path)| copy(&path, &dir.join(library)))
        }
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // Not over a file that runs.
    let _ = fs::remove_file(to);
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
