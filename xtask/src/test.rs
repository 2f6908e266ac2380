//! `cargo xtask test`: every check there is, one after the other, and a summary.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::clients::Clients;
use crate::containers;
use crate::loadtest;
use crate::nvrtc;
use crate::programs;
use crate::prometheus;
use crate::server::Server;
use crate::workspace::{Profile, Workspace, run};

/// One step of the tests. They run in the order of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Step {
    /// The sources are formatted
    Fmt,
    /// No lint is broken
    Clippy,
    /// Licences, sources and bans of dependencies, by cargo-deny where it is installed
    Deny,
    /// Every CUDA kernel compiles, and takes what is recorded
    Kernels,
    /// The tests of the programs in programs, and their components, which later tests run
    Programs,
    /// Everything builds, and the worker starts
    Build,
    /// The tests in Rust
    Rust,
    /// The root file systems of the images in docker, each in namespaces of its own
    Containers,
    /// Models of the rings in shared memory under every schedule, by loom
    Loom,
    /// Clients in Python, curl, and the admin listener, against a running server
    Python,
    /// Clients in Node.js against a running server
    Node,
    /// Requests made from openapi.yaml against a running server
    Schema,
    /// The server ends by itself when told to
    Stop,
    /// Short forms of the load tests, against a server of their own
    Load,
    /// The alerts and the dashboard in deploy, by Prometheus beside a server under load
    Monitoring,
}

/// How a step ended.
#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(anyhow::Error),
    Skipped(&'static str),
}

impl From<anyhow::Result<()>> for Outcome {
    fn from(result: anyhow::Result<()>) -> Self {
        result.map_or_else(Outcome::Failed, |()| Outcome::Passed)
    }
}

/// Runs the steps named, or all. A step that fails does not keep the others from running, unless
/// they need what it should have built.
pub(crate) fn test(chosen: &[Step]) -> anyhow::Result<ExitCode> {
    let mut steps = Step::value_variants().to_vec();
    if !chosen.is_empty() {
        // What calls a server needs one that is built and, in the end, stopped, and programs for it.
        let calls = chosen
            .iter()
            .any(|step| (Step::Python..=Step::Stop).contains(step));
        let contains = chosen.contains(&Step::Containers);
        let starts = contains || chosen.iter().any(|step| *step > Step::Stop);
        steps.retain(|step| {
            chosen.contains(step)
                || calls && *step == Step::Stop
                || (calls || contains) && *step == Step::Programs
                || (calls || starts) && *step == Step::Build
        });
    }
    let workspace = Workspace::set_up()?;
    let clients = Clients::new(&workspace)?;
    let mut run = Run {
        workspace,
        clients,
        built: true,
        server: None,
    };
    let mut report = Vec::new();
    for step in steps {
        println!("\n==> {}", step.name());
        let start = Instant::now();
        let outcome = run.step(step);
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(error) => println!("{} failed: {error:#}", step.name()),
            Outcome::Skipped(why) => println!("{} skipped: {why}", step.name()),
        }
        report.push((step, outcome, start.elapsed()));
    }
    Ok(summarise(&report))
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// What steps leave for later ones.
struct Run {
    workspace: Workspace,
    clients: Clients,
    /// False once the build failed.
    built: bool,
    /// Started by the first step that calls it.
    server: Option<Server>,
}

impl Run {
    fn step(&mut self, step: Step) -> Outcome {
        if step > Step::Build && !self.built {
            return Outcome::Skipped("the build failed");
        }
        let workspace = &self.workspace;
        match step {
            Step::Fmt => {
                // All but the first are workspaces of their own.
                let manifests = [
                    "Cargo.toml",
                    "programs/Cargo.toml",
                    "shm/bench/Cargo.toml",
                    "shm/fuzz/Cargo.toml",
                ];
                let check = |manifest| {
                    let args = ["fmt", "--all", "--check", "--manifest-path", manifest];
                    run(&mut workspace.cargo(args))
                };
                manifests.into_iter().try_for_each(check).into()
            }
            Step::Clippy => {
                let args = [
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "--deny",
                    "warnings",
                ];
                let programs = workspace.root.join("programs");
                run(&mut workspace.cargo(args))
                    .and_then(|()| run(workspace.cargo(args).current_dir(programs)))
                    .into()
            }
            Step::Deny => {
                let mut version = Command::new("cargo-deny");
                version
                    .arg("--version")
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                if !version.status().is_ok_and(|status| status.success()) {
                    return Outcome::Skipped(
                        "cargo-deny is missing: `cargo install --locked cargo-deny`",
                    );
                }
                // Advisories are left out: their verdict changes without a change here.
                // The configuration is looked for beside the manifest, then in the folders above.
                let check = |manifest| {
                    run(&mut workspace.cargo([
                        "deny",
                        "--manifest-path",
                        manifest,
                        "check",
                        "--hide-inclusion-graph",
                        "bans",
                        "licenses",
                        "sources",
                    ]))
                };
                check("Cargo.toml")
                    .and_then(|()| check("programs/Cargo.toml"))
                    .into()
            }
            Step::Kernels => nvrtc::check(workspace, false).into(),
            Step::Programs => programs::test(workspace)
                .and_then(|()| programs::build(workspace))
                .into(),
            Step::Build => {
                let result = workspace.build(Profile::Dev);
                self.built = result.is_ok();
                result.into()
            }
            Step::Rust => {
                run(&mut workspace.cargo(["test", "--workspace", "--no-fail-fast"])).into()
            }
            Step::Containers => match containers::test(workspace) {
                Ok(true) => Outcome::Passed,
                Ok(false) => Outcome::Skipped(
                    "this system does not let its user make namespaces: see kernel.unprivileged_userns_clone, or \
                     kernel.apparmor_restrict_unprivileged_userns",
                ),
                Err(error) => Outcome::Failed(error),
            },
            Step::Loom => {
                // In a folder of its own: the flag is part of what every crate is built with.
                let mut cargo = workspace.cargo(["test", "--package", "realm-shm", "--lib"]);
                cargo
                    .args(["--release", "--target-dir"])
                    .arg(workspace.target.join("loom"))
                    .env("RUSTFLAGS", "--cfg loom");
                run(&mut cargo).into()
            }
            Step::Python => self.call(Clients::python).into(),
            Step::Node => self.call(Clients::node).into(),
            Step::Schema => self.call(Clients::schema).into(),
            Step::Stop => match self.server.take() {
                Some(server) => server.stop().into(),
                None => Outcome::Skipped("no server was started"),
            },
            Step::Load => loadtest::short(workspace).into(),
            Step::Monitoring => {
                let realm = workspace.binary(Profile::Dev, "realm");
                match prometheus::ensure() {
                    Ok(Some(prometheus)) => self.clients.monitoring(&realm, &prometheus).into(),
                    Ok(None) => Outcome::Skipped(
                        "prometheus and promtool are missing, and Go to build them with: install either with your \
                         package manager",
                    ),
                    Err(error) => Outcome::Failed(error),
                }
            }
        }
    }

    /// Runs one suite against the server.
    fn call(&mut self, suite: fn(&Clients, &Server) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let server = match self.server.take() {
            Some(server) => server,
            None => {
                let realm = self.workspace.binary(Profile::Dev, "realm");
                self.clients.serve(&realm)?
            }
        };
        suite(&self.clients, self.server.insert(server))
    }
}

fn summarise(report: &[(Step, Outcome, Duration)]) -> ExitCode {
    println!("\n==> summary");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (step, outcome, time) in report {
        let (word, why) = match outcome {
            Outcome::Passed => {
                passed += 1;
                ("passed", "")
            }
            Outcome::Failed(_) => {
                failed += 1;
                ("FAILED", "")
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                ("skipped", *why)
            }
        };
        let line = format!(
            "{word:<8} {:<8} {:>5} s  {why}",
            step.name(),
            time.as_secs()
        );
        println!("{}", line.trim_end());
    }
    println!("steps: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
