//! The client suites in `tests/clients`: what they need, and how each is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};

use crate::pip;
use crate::server::Server;
use crate::workspace::{Workspace, on_path, run};

/// Oldest Node.js that the SDK supports.
const NODE: u32 = 20;
/// Oldest Python that every package in requirements.txt supports.
const PYTHON: (u32, u32) = (3, 10);

/// The suites and the packages they use, installed below the target folder.
#[derive(Debug)]
pub(crate) struct Clients {
    /// `tests/clients` in the checkout.
    source: PathBuf,
    /// Where packages are installed and suites leave what they write.
    scratch: PathBuf,
    root: PathBuf,
    /// Components of `programs/`.
    programs: PathBuf,
}

impl Clients {
    /// Sees that Python, Node.js and curl are there. Cheap, so that it can go before an hour of builds.
    pub(crate) fn new(workspace: &Workspace) -> anyhow::Result<Self> {
        check_python()?;
        check_node()?;
        if !on_path("curl") {
            bail!(
                "curl is missing, which the client suites call: install it with your package manager"
            );
        }
        let scratch = workspace.target.join("clients");
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        Ok(Clients {
            source: workspace.root.join("tests/clients"),
            scratch,
            root: workspace.root.clone(),
            programs: workspace.programs(),
        })
    }

    /// Where the server that the suites call writes its log.
    pub(crate) fn server_log(&self) -> PathBuf {
        self.scratch.join("server.log")
    }

    /// The OpenAI SDK for Python, curl, and the admin listener.
    pub(crate) fn python(&self, server: &Server) -> anyhow::Result<()> {
        let bin = self.install_python()?;
        let mut pytest = Command::new(bin.join("python"));
        pytest
            .args(["-m", "pytest", "-p", "no:cacheprovider"])
            .current_dir(self.source.join("python"));
        self.run(&mut pytest, server)
    }

    /// The OpenAI SDK for Node.js.
    pub(crate) fn node(&self, server: &Server) -> anyhow::Result<()> {
        let folder = self.install_node()?;
        let mut tests: Vec<_> = entries(&folder)?;
        tests.retain(|path| path.to_string_lossy().ends_with(".test.mjs"));
        self.run(
            Command::new("node")
                .args(["--test", "--test-reporter=spec"])
                .args(tests),
            server,
        )
    }

    /// Requests made from `openapi.yaml`, and the answers held against it.
    pub(crate) fn schema(&self, server: &Server) -> anyhow::Result<()> {
        let bin = self.install_python()?;
        let mut schemathesis = Command::new(bin.join("schemathesis"));
        schemathesis
            .arg("--config-file")
            .arg(self.source.join("schemathesis.toml"))
            .arg("run")
            .arg(self.root.join("openapi.yaml"))
            .arg("--origin")
            .arg(format!("http://{}", server.api))
            .env(
                "SCHEMATHESIS_HOOKS",
                self.source.join("schemathesis_hooks.py"),
            )
            // Where it leaves what it noted.
            .current_dir(&self.scratch);
        self.run(&mut schemathesis, server)
    }

    fn run(&self, command: &mut Command, server: &Server) -> anyhow::Result<()> {
        command
            .stdin(Stdio::null())
            .env("REALM_BASE_URL", format!("http://{}/v1", server.api))
            .env("REALM_ADMIN_URL", format!("http://{}", server.admin))
            // For suites that need servers with other settings.
            .env("REALM_BINARY", &server.realm)
            .env("REALM_PROGRAMS", &self.programs)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        run(command).map_err(|error| {
            anyhow!(
                "{error}; the end of the server's log:\n{}",
                server.log_end()
            )
        })
    }

    /// A virtual environment with the pinned packages; returns its `bin`.
    fn install_python(&self) -> anyhow::Result<PathBuf> {
        let venv = self.scratch.join("venv");
        let bin = venv.join("bin");
        let pins = self.source.join("requirements.txt");
        install_once(&venv, &pins, || {
            run(Command::new("python3").args(["-m", "venv"]).arg(&venv).stdout(Stdio::null())).context(
                "python3 cannot make a virtual environment: install its venv module (`apt-get install python3-venv` \
                 on Debian, Ubuntu)",
            )?;
            let mut pip = pip::install(bin.join("python"));
            let output = pip
                .arg("--requirement")
                .arg(&pins)
                .output()
                .context("cannot start the pip of the venv")?;
            if !output.status.success() {
                let log = String::from_utf8_lossy(&output.stderr);
                bail!(
                    "{}",
                    pip::explain("the packages of tests/clients/requirements.txt", &log)
                );
            }
            Ok(())
        })?;
        Ok(bin)
    }

    /// A copy of the suite beside the packages it imports, which Node.js looks for there.
    fn install_node(&self) -> anyhow::Result<PathBuf> {
        let folder = self.scratch.join("node");
        let source = self.source.join("node");
        let pins = source.join("package-lock.json");
        install_once(&folder, &pins, || {
            fs::create_dir_all(&folder)?;
            for name in ["package.json", "package-lock.json"] {
                fs::copy(source.join(name), folder.join(name))?;
            }
            let mut npm = Command::new("npm");
            npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&folder)
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
                    "npm cannot install the packages of tests/clients/node ({code}): check the network and npm's \
                     settings (`npm config list`)"
                );
            }
            Ok(())
        })?;
        let is_test =
            |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "mjs");
        for old in entries(&folder)?.iter().filter(is_test) {
            fs::remove_file(old)?;
        }
        for file in entries(&source)?.iter().filter(is_test) {
            fs::copy(file, folder.join(file.file_name().unwrap_or_default()))?;
        }
        Ok(folder)
    }
}

/// Fills `folder` by `install` unless that was done before from the same `pins`.
fn install_once(
    folder: &Path,
    pins: &Path,
    install: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let stamp = folder.join("installed-from");
    let wanted = fs::read(pins).with_context(|| format!("cannot read {}", pins.display()))?;
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    println!("installing the packages of {}", pins.display());
    install()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()
    };
    let mut paths = read().with_context(|| format!("cannot list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// What a program says its version is, in numbers; none if there is no such program.
fn version(program: &str) -> Option<Vec<u32>> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    Some(numbers(&String::from_utf8_lossy(&output.stdout)))
}

/// The numbers in `v20.1.2` or `Python 3.11.7`.
fn numbers(version: &str) -> Vec<u32> {
    let version = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    version
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .collect()
}

fn check_python() -> anyhow::Result<()> {
    let wanted = format!(
        "the client suites need Python {}.{} or later with venv: install them with `apt-get install python3 \
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

fn check_node() -> anyhow::Result<()> {
    let wanted = format!(
        "the client suites need Node.js {NODE} or later with npm: install them with your package manager"
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::{install_once, numbers};

    #[test]
    fn versions_are_read() {
        assert_eq!(numbers("Python 3.11.7\n"), [3, 11, 7]);
        assert_eq!(numbers("v20.1.2"), [20, 1, 2]);
        assert_eq!(numbers("Python 3.15.0rc1"), [3, 15, 0]);
        assert!(numbers("none").is_empty());
    }

    #[test]
    fn packages_are_installed_again_only_when_their_pins_change() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (folder, pins) = (dir.path().join("packages"), dir.path().join("pins"));
        let installs = Cell::new(0);
        let install = || {
            installs.set(installs.get() + 1);
            Ok(fs::create_dir(&folder)?)
        };
        for (text, expected) in [("a", 1), ("a", 1), ("b", 2), ("b", 2)] {
            fs::write(&pins, text).expect("written");
            install_once(&folder, &pins, install).expect("installs");
            assert_eq!(installs.get(), expected);
        }
    }

    #[test]
    fn an_installation_that_failed_is_begun_anew() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (folder, pins) = (dir.path().join("packages"), dir.path().join("pins"));
        fs::write(&pins, "a").expect("written");
        let fail = || {
            fs::create_dir(&folder)?;
            anyhow::bail!("no network")
        };
        install_once(&folder, &pins, fail).expect_err("fails");
        install_once(&folder, &pins, || Ok(fs::create_dir(&folder)?))
            .expect("begins without the old folder");
    }
}
