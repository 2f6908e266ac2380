//! Python and its packages.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::packages::{install_once, version};
use crate::workspace::run;

/// Oldest Python that every package in any requirements.txt supports.
const PYTHON: (u32, u32) = (3, 10);

/// Sees that there is a Python that can make virtual environments.
pub(crate) fn check_python() -> anyhow::Result<()> {
    let wanted = format!(
        "the client suites and the load tests need Python {}.{} or later with venv: install them with `apt-get install python3 \
         python3-venv` (Debian, Ubuntu) or `dnf install python3` (Fedora)",
        PYTHON.0, PYTHON.1
    );
    match version("python3").as_deref() {
        Some([major, minor, ..]) if (*major, *minor) >= PYTHON => {}
        Some([major, minor, ..]) => bail!("python3 is Python {major}.{minor}; {wanted}"),
        _ => bail!("python3 is missing; {wanted}"),
    }
    // Debian splits `ensurepip`, without which a new environment has no pip, into a package.
    let venv = Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .stderr(Stdio::null())
        .status();
    if !venv.is_ok_and(|status| status.success()) {
        bail!("python3 has no venv module; {wanted}");
    }
    Ok(())
}

/// A virtual environment at `venv` with the packages that the file `pins` names; returns its `bin`.
pub(crate) fn environment(venv: &Path, pins: &Path) -> anyhow::Result<PathBuf> {
    let bin = venv.join("bin");
    install_once(venv, pins, || {
        run(Command::new("python3").args(["-m", "venv"]).arg(venv).stdout(Stdio::null())).context(
            "python3 cannot make a virtual environment: install its venv module (`apt-get install python3-venv` \
             on Debian, Ubuntu)",
        )?;
        let mut pip = install(bin.join("python"));
        let output = pip
            .arg("--requirement")
            .arg(pins)
            .output()
            .context("cannot start the pip of the venv")?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{}",
                explain(&format!("the packages of {}", pins.display()), &log)
            );
        }
        Ok(())
    })?;
    Ok(bin)
}

/// `pip install` of a Python, without what differs between users. The caller collects standard
/// error for [`explain`].
pub(crate) fn install(python: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(python);
    command
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(["--no-deps", "--only-binary=:all:"])
        // Settings of a user's own that contradict a folder that is given.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Unpacks pinned wheels for Linux on x86-64 in a folder that is made for them.
pub(crate) fn fetch(
    folder: &Path,
    what: &str,
    requirements: &str,
    platforms: &[&str],
) -> anyhow::Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("{what}: fetched for Linux on x86-64 only");
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (file, log) = (folder.join("requirements.txt"), folder.join("pip.log"));
    fs::write(&file, requirements)?;
    let status = install("python3")
        .args(["--no-cache-dir", "--no-compile", "--require-hashes"])
        .args(
            platforms
                .iter()
                .flat_map(|platform| ["--platform", platform]),
        )
        .arg("--target")
        .arg(folder)
        .arg("--requirement")
        .arg(&file)
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| format!("python3 and its pip, which fetch {what}, cannot be started"))?;
    if !status.success() {
        bail!("{}", explain(what, &fs::read_to_string(&log)?));
    }
    Ok(())
}

/// One line about why pip could not install `what`, from what it wrote to standard error. pip's
/// own words are not repeated: they may name the hosts and tokens of a private index.
pub(crate) fn explain(what: &str, log: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if says(&["DO NOT MATCH THE HASHES"]) {
        format!(
            "pip got something else than the pinned {what} (the hashes differ): look at what your package index or \
             proxy serves"
        )
    } else if says(&["No space left"]) {
        format!("the disk is full: make room for {what}")
    } else if says(&[
        "No matching distribution",
        "Could not find a version",
        "Retrying",
        "HTTP error",
    ]) {
        // An index that cannot be reached is reported as one that has nothing.
        format!(
            "pip's package index cannot be reached, or does not have {what} for this platform: check the network and \
             pip's settings (`pip config list`)"
        )
    } else {
        format!("pip cannot install {what}: `python3 -m pip download` of it may say why")
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn says_why_and_names_no_host() {
        let unreachable = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError' \
                           https://user:token@index.example/simple/torch/\nERROR: No matching distribution found";
        let cases = [
            (unreachable, "cannot be reached"),
            (
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
                "hashes differ",
            ),
            (
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            (
                "ERROR: something new from https://index.example/",
                "may say why",
            ),
        ];
        for (log, reason) in cases {
            let line = explain("torch 2.11.0", log);
            assert!(
                line.contains(reason) && line.contains("torch 2.11.0"),
                "{line}"
            );
            assert!(!line.contains('\n') && !line.contains("example"), "{line}");
        }
    }
}
