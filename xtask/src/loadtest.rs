//! `cargo xtask loadtest`: the scenarios of `loadtest/scenarios`, played by Locust.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::pip;
use crate::server::Server;
use crate::workspace::{Profile, Workspace};

/// Tenants of the server under load: those of fairness, then those that run into their limits.
const STEADY: [&str; 3] = ["steady-1", "steady-2", "flood"];
const LIMITED: [&str; 2] = ["requests", "tokens"];
/// With so few KV blocks, which are resident once they have been used, that memory is soon settled,
/// and crowds take blocks from one another.
const CONFIG: &str = r#"api_keys = "keys.json"

[worker]
kv_memory = "64MiB"

[[tenant]]
id = "requests"
requests_per_minute = 120

[[tenant]]
id = "tokens"
tokens_per_minute = 2000
"#;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Scenarios to play, in this order [default: all]
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Play short forms, which ask whether all is right, not whether it is fast
    #[arg(long)]
    short: bool,
    /// The API of a running server to use, such as http://127.0.0.1:8080/v1, instead of one of our own
    ///
    /// Its keys are those in LOAD_KEYS, with commas between them.
    #[arg(long)]
    url: Option<String>,
    /// The running server's admin listener, if it is a Realm that nobody else uses meanwhile
    #[arg(long, requires = "url")]
    admin_url: Option<String>,
    /// Arguments of `locust`
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// One way to put load on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Every kind of request, and errors
    Smoke,
    /// Requests of all kinds that arrive at a steady rate
    Steady,
    /// A crowd between two calm times
    Spike,
    /// Tenants beside one that floods
    Fairness,
    /// Clients that go away
    Disconnects,
    /// Tenants that run into their limits
    Limits,
    /// A mixed load for half an hour
    Soak,
}

pub(crate) fn loadtest(args: &Args) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::set_up()?;
    let locust = Locust::install(&workspace)?;
    let target = match &args.url {
        Some(url) => Target::Running {
            url: url.clone(),
            admin_url: args.admin_url.clone(),
        },
        None => {
            workspace.build(Profile::Release)?;
            locust.serve(&workspace.binary(Profile::Release, "realm"))?
        }
    };
    let mut code = ExitCode::SUCCESS;
    for scenario in chosen(&args.scenarios) {
        let status = locust.play(scenario, args.short, &target, &args.args)?;
        if !status.success() {
            code = status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from);
        }
    }
    target.stop()?;
    Ok(code)
}

/// The short form of every scenario, against the server that the tests have built.
pub(crate) fn short(workspace: &Workspace) -> anyhow::Result<()> {
    let locust = Locust {
        defaults: true,
        ..Locust::install(workspace)?
    };
    let target = locust.serve(&workspace.binary(Profile::Dev, "realm"))?;
    let mut failed = Vec::new();
    for scenario in chosen(&[]) {
        if !locust.play(scenario, true, &target, &[])?.success() {
            failed.push(scenario.name());
        }
    }
    if !failed.is_empty() {
        bail!(
            "the scenarios {} failed, see what is BROKEN above; the end of the server's log:\n{}",
            failed.join(", "),
            target.log_end()
        );
    }
    target.stop()
}

fn chosen(named: &[Scenario]) -> Vec<Scenario> {
    match named {
        [] => Scenario::value_variants().to_vec(),
        named => named.to_vec(),
    }
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// The server under load.
enum Target {
    Own {
        server: Server,
        /// Of the tenants in [`STEADY`].
        keys: String,
        /// Of the tenants in [`LIMITED`].
        limited: String,
    },
    Running {
        url: String,
        admin_url: Option<String>,
    },
}

impl Target {
    fn log_end(&self) -> String {
        match self {
            Target::Own { server, .. } => server.log_end(),
            Target::Running { .. } => String::new(),
        }
    }

    fn stop(self) -> anyhow::Result<()> {
        match self {
            Target::Own { server, .. } => server.stop(),
            Target::Running { .. } => Ok(()),
        }
    }
}

/// Locust, installed below the target folder.
struct Locust {
    binary: PathBuf,
    /// `loadtest/scenarios` in the checkout.
    source: PathBuf,
    /// Where the server's settings and the summaries go.
    scratch: PathBuf,
    /// Whether tests are played, which are about the defaults, whatever this shell is set up for.
    defaults: bool,
}

impl Locust {
    fn install(workspace: &Workspace) -> anyhow::Result<Self> {
        pip::check_python()?;
        let source = workspace.root.join("loadtest/scenarios");
        let scratch = workspace.target.join("loadtest");
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        let bin = pip::environment(&scratch.join("venv"), &source.join("requirements.txt"))?;
        Ok(Locust {
            binary: bin.join("locust"),
            source,
            scratch,
            defaults: false,
        })
    }

    /// A server with the tenants that the scenarios need.
    fn serve(&self, realm: &Path) -> anyhow::Result<Target> {
        let folder = self.scratch.join("server");
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let config = folder.join("realm.toml");
        fs::write(&config, CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
        let keys = |tenants: &[&str]| -> anyhow::Result<String> {
            let keys: Vec<_> = tenants
                .iter()
                .map(|tenant| generate_key(realm, tenant, &folder.join("keys.json")))
                .collect::<anyhow::Result<_>>()?;
            Ok(keys.join(","))
        };
        let (keys, limited) = (keys(&STEADY)?, keys(&LIMITED)?);
        let args = ["--config".as_ref(), config.as_os_str()];
        Ok(Target::Own {
            server: Server::start(realm, folder.join("server.log"), args)?,
            keys,
            limited,
        })
    }

    fn play(
        &self,
        scenario: Scenario,
        short: bool,
        target: &Target,
        args: &[OsString],
    ) -> anyhow::Result<ExitStatus> {
        let name = scenario.name();
        println!("\n--> {name}");
        let mut locust = Command::new(&self.binary);
        if self.defaults {
            for (name, _) in env::vars_os() {
                let text = name.to_string_lossy();
                if text.starts_with("LOAD_") || text.starts_with("LOCUST_") {
                    locust.env_remove(&name);
                }
            }
        }
        locust
            .arg("--locustfile")
            .arg(self.source.join(&name).with_extension("py"))
            .args(["--headless", "--only-summary", "--loglevel", "WARNING"])
            .args(args)
            .env(
                "LOAD_SUMMARY",
                self.scratch.join(&name).with_extension("json"),
            )
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Where it would look for settings of its own.
            .current_dir(&self.scratch)
            .stdin(Stdio::null());
        if short {
            locust.env("LOAD_SHORT", "1");
        }
        match target {
            Target::Own {
                server,
                keys,
                limited,
            } => {
                let keys = match scenario {
                    Scenario::Limits => limited,
                    _ => keys,
                };
                locust
                    .env("LOAD_URL", format!("http://{}/v1", server.api))
                    .env("LOAD_ADMIN_URL", format!("http://{}", server.admin))
                    .env("LOAD_KEYS", keys)
                    .env("LOAD_PID", server.pid().to_string())
                    .env_remove("LOAD_MODEL");
            }
            Target::Running { url, admin_url } => {
                locust.env("LOAD_URL", url);
                if let Some(admin_url) = admin_url {
                    locust.env("LOAD_ADMIN_URL", admin_url);
                }
            }
        }
        locust
            .status()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }
}

/// Makes a key for a tenant, as its owner would.
fn generate_key(realm: &Path, tenant: &str, file: &Path) -> anyhow::Result<String> {
    let output = Command::new(realm)
        .args(["api-key", "generate", "--name", "load", "--tenant", tenant])
        .arg("--file")
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", realm.display()))?;
    if !output.status.success() {
        bail!("`realm api-key generate` failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
