//! `cargo xtask selfcheck-folder`: what checks and measures a GPU on a machine that has a driver and a Python with torch,
//! and nothing of this checkout.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::wheels;
use crate::workspace::{Part, Profile, Workspace};

/// Most bytes of the folder: it is made to be carried.
const MOST: u64 = 64 << 20;
const SCRIPT: &str = include_str!("selfcheck.sh");
/// What checks, and what it measures the way through HTTP with.
const PROGRAMS: [&str; 2] = ["realm-worker", "realm"];

/// What to fill.
#[derive(Debug, Args)]
pub(crate) struct Folder {
    /// Folder to fill; what it holds under the same names is replaced
    dir: PathBuf,
}

/// Builds a release, and fills the folder.
pub(crate) fn folder(args: &Folder) -> anyhow::Result<()> {
    let workspace = Workspace::set_up()?;
    workspace.release(&[Part::Worker, Part::Gateway])?;
    let programs = PROGRAMS.map(|name| workspace.binary(Profile::Release, name));
    let bytes = fill(&args.dir, &programs)?;
    let dir = args.dir.display();
    println!(
        "{dir}: {} MiB; copy it, and run selfcheck in it",
        bytes >> 20
    );
    Ok(())
}

/// Puts [`PROGRAMS`] and the script that runs them into a folder: how many bytes they are.
fn fill(dir: &Path, programs: &[PathBuf; 2]) -> anyhow::Result<u64> {
    let script = SCRIPT.replace("@TORCH@", wheels::VERSION);
    let cannot = |path: &Path| format!("cannot write {}", path.display());
    let mut bytes = script.len() as u64;
    for program in programs {
        let size = fs::metadata(program);
        bytes += size
            .with_context(|| format!("cannot read {}", program.display()))?
            .len();
    }
    if bytes > MOST {
        bail!("the programs have {bytes} bytes, and the folder is to have no more than {MOST}");
    }
    fs::create_dir_all(dir).with_context(|| cannot(dir))?;
    for (program, name) in programs.iter().zip(PROGRAMS) {
        let to = dir.join(name);
        // Not over a file that runs.
        let _ = fs::remove_file(&to);
        fs::copy(program, &to).with_context(|| cannot(&to))?;
    }
    let to = dir.join("selfcheck");
    fs::write(&to, script).with_context(|| cannot(&to))?;
    fs::set_permissions(&to, Permissions::from_mode(0o755)).with_context(|| cannot(&to))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    fn program(path: &Path, text: &str) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("set");
    }

    /// Runs the script with a Python that says so of its torch, and a worker that says how it was started.
    fn run(python: &str) -> Output {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (worker, python_path) = (dir.path().join("worker"), dir.path().join("python"));
        program(
            &worker,
            "#!/bin/sh\necho \"$@ with $LD_LIBRARY_PATH\"\nexit 3\n",
        );
        program(&python_path, python);
        let folder = dir.path().join("a folder");
        fill(&folder, &[worker.clone(), worker]).expect("filled");
        Command::new(folder.join("selfcheck"))
            .args(["--device", "cuda:1"])
            .env("PYTHON", &python_path)
            .env("LD_LIBRARY_PATH", "/before")
            .output()
            .expect("runs")
    }

    #[test]
    fn the_worker_is_given_the_libraries_of_the_active_python() {
        let version = wheels::VERSION;
        let python = format!("#!/bin/sh\necho '/a b/torch'\necho '{version}+cu130'\n");
        let output = run(&python);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            said,
            "selfcheck --device cuda:1 with /a b/torch/lib:/before\n"
        );
        assert_eq!(output.status.code(), Some(3), "the status of the worker");
    }

    #[test]
    fn a_python_without_the_right_torch_is_told() {
        let other = run("#!/bin/sh\necho /torch\necho 2.10.0\n");
        let none = run("#!/bin/sh\nexit 1\n");
        for output in [other, none] {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(wheels::VERSION), "{said}");
            assert_eq!(output.status.code(), Some(1));
            assert!(output.stdout.is_empty());
        }
    }

    #[test]
    fn what_is_too_large_to_be_carried_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let worker = dir.path().join("worker");
        let file = fs::File::create(&worker).expect("made");
        file.set_len(MOST / 2 + 1).expect("longer");
        let folder = dir.path().join("folder");
        // Together.
        fill(&folder, &[worker.clone(), worker]).expect_err("too large");
        assert!(!folder.exists());
    }
}
