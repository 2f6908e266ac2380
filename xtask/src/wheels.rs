//! The wheels that hold libtorch: pinned by version and hash, without the Python packages that they
//! would like to have.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::pip;

/// The one version that the `tch` crate of the workspace binds.
pub(crate) const VERSION: &str = "2.11.0";
/// The wheels for Linux on x86-64, as pip reads them. torch is built for one Python version each;
/// what we take of it is the same in all, so that any Python can fetch the one that is named here.
pub(crate) const REQUIREMENTS: &str = "\
torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
";
const PYTHON_VERSION: &str = "3.11";
const PLATFORMS: [&str; 3] = [
    "manylinux_2_28_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_17_x86_64",
];

/// Bytes on the disk when pip is done and nothing is deleted yet: the wheels, and what they hold.
const WRITTEN: u64 = 1_725_000_000;
/// Free bytes to ask for, with some room.
const FREE: u64 = 2_200_000_000;
const POLL: Duration = Duration::from_millis(200);

/// Installs the wheels into `dir` and keeps of them what is needed to build and run the worker.
/// `lock` is what keeps others out of `dir`.
pub(crate) fn install(dir: &Path, lock: &File) -> anyhow::Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "libtorch is fetched for Linux on x86-64 only: install libtorch {VERSION} and set LIBTORCH \
             to its folder"
        );
    }
    check_pip()?;
    check_space(dir)?;
    eprintln!("fetching libtorch {VERSION}: 0.5 GB to download, 1.1 GB to keep");
    let requirements = dir.join("requirements.txt");
    let log = dir.join("pip.log");
    // pip unpacks in TMPDIR and then moves: on the same disk that is a rename.
    let scratch = dir.join("tmp");
    fs::create_dir(&scratch)?;
    fs::write(&requirements, REQUIREMENTS)?;
    let mut child = pip::install("python3")
        .args(["--no-cache-dir", "--no-compile", "--require-hashes"])
        .args(["--implementation", "cp", "--python-version", PYTHON_VERSION])
        .args(
            PLATFORMS
                .iter()
                .flat_map(|platform| ["--platform", platform]),
        )
        .arg("--target")
        .arg(dir)
        .arg("--requirement")
        .arg(&requirements)
        .env("TMPDIR", &scratch)
        // Should we be killed, the lock is held until pip is gone too.
        .stdin(lock.try_clone()?)
        .stderr(File::create(&log)?)
        .spawn()
        .context("cannot start python3")?;
    let progress = progress_bar();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.set_position(folder_size(dir));
        std::thread::sleep(POLL);
    };
    progress.finish_and_clear();
    if !status.success() {
        let why = pip::explain(&format!("torch {VERSION}"), &fs::read_to_string(&log)?);
        bail!("{why}; or set LIBTORCH to a libtorch {VERSION} that is already there");
    }
    trim(dir)?;
    eprintln!("libtorch {VERSION} is in place");
    Ok(())
}

fn check_pip() -> anyhow::Result<()> {
    let works = |args: &[&str]| {
        let mut python = Command::new("python3");
        let status = python
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    if !works(&["--version"]) {
        bail!(
            "python3 is missing, which fetches libtorch: install it with `apt-get install python3 python3-pip \
             python3-venv` (Debian, Ubuntu) or `dnf install python3 python3-pip` (Fedora)"
        );
    }
    if !works(&["-m", "pip", "--version"]) {
        bail!(
            "pip is missing, which fetches libtorch: install it with `apt-get install python3-pip` (Debian, \
             Ubuntu) or `dnf install python3-pip` (Fedora)"
        );
    }
    Ok(())
}

fn check_space(dir: &Path) -> anyhow::Result<()> {
    let disk = rustix::fs::statvfs(dir)
        .with_context(|| format!("cannot tell how full {} is", dir.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < FREE {
        bail!(
            "libtorch needs {:.1} GB on the disk of the cache while it is fetched, and {:.1} GB are free: make \
             room, or set XDG_CACHE_HOME to a folder on a larger disk",
            FREE as f64 / 1e9,
            free as f64 / 1e9
        );
    }
    Ok(())
}

/// A bar on a terminal, nothing in a log.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(WRITTEN);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}%  {elapsed}") {
        bar.set_style(style);
    }
    bar
}

/// Bytes in a folder that somebody else is writing to: what vanishes meanwhile counts nothing.
fn folder_size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Deletes what only Python needs. Licences stay.
fn trim(dir: &Path) -> anyhow::Result<()> {
    let packages = |name: &str| name == "torch" || name == "nvidia" || name.ends_with(".dist-info");
    retain(dir, packages)?;
    retain(&dir.join("torch"), |name| {
        matches!(name, "lib" | "include" | "version.py")
    })?;
    retain(&dir.join("torch/lib"), |name| {
        !name.starts_with("libshm") && name != "libtorch_python.so"
    })
}

fn retain(dir: &Path, keep: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if keep(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
