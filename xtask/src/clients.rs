//! The client suites in `tests/clients`: what they need, and how each is run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};

use crate::npm;
use crate::pip;
use crate::server::Server;
use crate::workspace::{Workspace, on_path, run};

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
        pip::check_python()?;
        npm::check("the client suites")?;
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

    /// Starts the server that the suites call, with an empty folder of programs.
    pub(crate) fn serve(&self, realm: &Path) -> anyhow::Result<Server> {
        let programs = self.scratch.join("programs");
        if programs.exists() {
            fs::remove_dir_all(&programs)
                .with_context(|| format!("cannot empty {}", programs.display()))?;
        }
        let args = [OsStr::new("--programs"), programs.as_os_str()];
        Server::start(realm, self.scratch.join("server.log"), args)
    }

    /// Clients in Python, curl, and the admin listener.
    pub(crate) fn python(&self, server: &Server) -> anyhow::Result<()> {
        let bin = self.install_python()?;
        let mut pytest = Command::new(bin.join("python"));
        pytest
            .args(["-m", "pytest", "-p", "no:cacheprovider"])
            .current_dir(self.source.join("python"));
        self.run(&mut pytest, server)
    }

    /// Clients in Node.js.
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

    /// The alerts and the dashboard in `deploy`, with the `prometheus` in a folder and a server of
    /// their own.
    pub(crate) fn monitoring(&self, realm: &Path, prometheus: &Path) -> anyhow::Result<()> {
        let bin = self.install_python()?;
        run(Command::new(bin.join("python"))
            .args(["-m", "pytest", "-p", "no:cacheprovider"])
            .current_dir(self.root.join("tests/monitoring"))
            .stdin(Stdio::null())
            .env("REALM_BINARY", realm)
            .env("PROMETHEUS", prometheus)
            .env("PYTHONDONTWRITEBYTECODE", "1"))
    }

    fn run(&self, command: &mut Command, server: &Server) -> anyhow::Result<()> {
        command
            .stdin(Stdio::null())
            .env("REALM_BASE_URL", format!("http://{}/v1", server.api))
            .env("REALM_ADMIN_URL", format!("http://{}", server.admin))
            // For suites that need servers with other settings.
            .env("REALM_BINARY", &server.realm)
            .env("REALM_PROGRAMS", &self.programs)
            // For those that run the examples of the documents.
            .env("REALM_DOCUMENTS", &self.root)
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
        let pins = self.source.join("requirements.txt");
        pip::environment(&self.scratch.join("venv"), &pins)
    }

    /// A copy of the suite beside the packages it imports, which Node.js looks for there.
    fn install_node(&self) -> anyhow::Result<PathBuf> {
        let folder = self.scratch.join("node");
        let source = self.source.join("node");
        npm::install(&folder, &source)?;
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
