//! The checkout, and cargo with the environment that the worker's build needs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::libtorch;

/// Which of cargo's profiles.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Profile {
    /// For tests: debug assertions, yet optimised enough to run a model.
    Dev,
    /// For serving.
    Release,
}

/// A program of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// `realm`
    Gateway,
    /// `realm-worker`, and libtorch beside it
    Worker,
}

/// A checkout that is ready to be built.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    libtorch: PathBuf,
    /// The C++ compiler, where it is not the one that the build would look for.
    cxx: Option<&'static str>,
}

impl Workspace {
    /// Checks for what the build needs and fetches what can be fetched.
    pub(crate) fn set_up() -> anyhow::Result<Self> {
        let cxx = find_cxx()?;
        let libtorch = libtorch::ensure()?;
        let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start it as `cargo xtask`")?;
        let root = Path::new(&manifest)
            .parent()
            .context("xtask lies outside of a workspace")?
            .to_owned();
        // This program is TARGET/debug/xtask, wherever cargo was told to put TARGET.
        let this = env::current_exe().context("cannot tell where xtask itself lies")?;
        let target = this
            .ancestors()
            .nth(2)
            .context("xtask lies outside of a target folder")?
            .to_owned();
        Ok(Workspace {
            root,
            target,
            libtorch,
            cxx,
        })
    }

    /// A cargo command at the root of the workspace.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(args)
            .current_dir(&self.root)
            .stdin(Stdio::null());
        // A Python with another torch must not be asked.
        command
            .env("LIBTORCH", &self.libtorch)
            .env_remove("LIBTORCH_USE_PYTORCH");
        if let Some(cxx) = self.cxx {
            command.env("CXX", cxx);
        }
        // Where the worker's tests find the guests that they run.
        if self.programs().is_dir() {
            command.env("REALM_PROGRAMS", self.programs());
        }
        command
    }

    /// Builds both binaries and sees that the worker finds libtorch on its own.
    pub(crate) fn build(&self, profile: Profile) -> anyhow::Result<()> {
        match profile {
            // For tests everything is built at once, so that the tests need no second build.
            Profile::Dev => {
                run(&mut self.cargo(["build", "--workspace"]))?;
                self.check_worker(profile)
            }
            Profile::Release => self.release(Part::value_variants()),
        }
    }

    /// Builds releases of these alone, and sees to the worker likewise.
    pub(crate) fn release(&self, parts: &[Part]) -> anyhow::Result<()> {
        let packages = parts.iter().flat_map(|part| match part {
            Part::Gateway => ["--package", "realm-gateway"],
            Part::Worker => ["--package", "realm-worker"],
        });
        run(self.cargo(["build", "--release", "--bins"]).args(packages))?;
        if parts.contains(&Part::Worker) {
            self.check_worker(Profile::Release)?;
        }
        Ok(())
    }

    fn check_worker(&self, profile: Profile) -> anyhow::Result<()> {
        let worker = self.binary(profile, "realm-worker");
        run(Command::new(&worker)
            .args(["info", "--json"])
            .env_clear()
            .stdout(Stdio::null()))
        .context("the worker was built and does not start")
    }

    /// Where the components of `programs/` are once they are built.
    pub(crate) fn programs(&self) -> PathBuf {
        self.target.join("programs")
    }

    /// The folder of libtorch.
    pub(crate) fn libtorch(&self) -> &Path {
        &self.libtorch
    }

    /// Where a binary is once it is built.
    pub(crate) fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target.join(folder).join(name)
    }
}

/// Runs a command to its end. Its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !status.success() {
        let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!(
            "`{} {}` failed: {status}",
            Path::new(&program)
                .file_name()
                .unwrap_or(&program)
                .display(),
            args.join(" ")
        );
    }
    Ok(())
}

/// Whether `name` is a program on the PATH.
pub(crate) fn on_path(name: &str) -> bool {
    let paths: OsString = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).any(|dir| dir.join(name).is_file())
}

/// The C++ compiler to name to the build; none where it finds one by itself.
fn find_cxx() -> anyhow::Result<Option<&'static str>> {
    if env::var_os("CXX").is_some() || on_path("c++") {
        return Ok(None);
    }
    match ["g++", "clang++"].into_iter().find(|name| on_path(name)) {
        Some(name) => Ok(Some(name)),
        None => bail!(
            "a C++ compiler is missing: install one with `apt-get install g++` (Debian, Ubuntu) or \
             `dnf install gcc-c++` (Fedora), or name yours in CXX"
        ),
    }
}
