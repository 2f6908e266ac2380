//! The commands of the README: `cargo xtask setup`, `build`, `install`, `programs`, `kernels`,
//! `selfcheck-folder`, `serve`, `test`, `faults` and `loadtest`.

mod clients;
mod containers;
mod cuda;
mod faults;
mod install;
mod libtorch;
mod loadtest;
mod npm;
mod nvrtc;
mod packages;
mod pip;
mod programs;
mod prometheus;
mod selfcheck;
mod server;
mod test;
mod wheels;
mod workspace;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Parser;

use crate::workspace::{Profile, Workspace};

/// Builds, serves and tests Realm
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Xtask {
    /// Fetch libtorch, if it is not there yet, and print where it is
    ///
    /// To use plain cargo on the worker: `export LIBTORCH=$(cargo xtask setup)`
    Setup,
    /// Build target/release/realm and target/release/realm-worker
    ///
    /// Both start without this repository or any environment variable.
    Build,
    /// Build, and fill a folder with both programs and the libraries that they need
    Install(install::Install),
    /// Build target/programs/*.wasm, of the sources in programs
    Programs {
        /// Make `chat` of them the one that is built into the gateway: when the contract or its source changed
        #[arg(long)]
        builtin: bool,
    },
    /// Compile every CUDA kernel, and compare what each takes of a GPU with cuda/kernels/resources.txt
    ///
    /// Needs no GPU: NVRTC is fetched if it is not there yet.
    Kernels {
        /// Write the table instead
        #[arg(long)]
        update: bool,
    },
    /// Build, and fill a small folder that checks and measures the GPU of another machine
    ///
    /// That has a driver and a Python with torch, and needs neither Rust nor a network.
    SelfcheckFolder(selfcheck::Folder),
    /// Build, then run `realm serve`
    Serve {
        /// Arguments of `realm serve`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run every test, or only the steps named
    Test {
        /// Steps to run, in this order
        #[arg(value_enum)]
        steps: Vec<test::Step>,
    },
    /// Run the long forms of the tests that take workers and servers away
    Faults(faults::Args),
    /// Put a server under load, and see that what it promises holds
    ///
    /// Settings are LOAD_* in the environment; loadtest/README.md lists them.
    Loadtest(loadtest::Args),
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Xtask) -> anyhow::Result<ExitCode> {
    match command {
        Xtask::Setup => println!("{}", libtorch::ensure()?.display()),
        Xtask::Build => {
            let workspace = Workspace::set_up()?;
            workspace.build(Profile::Release)?;
            println!("{}", workspace.binary(Profile::Release, "realm").display());
            println!(
                "{}",
                workspace.binary(Profile::Release, "realm-worker").display()
            );
        }
        Xtask::Install(args) => install::install(&args)?,
        Xtask::Programs { builtin } => {
            let workspace = Workspace::set_up()?;
            programs::build(&workspace)?;
            if builtin {
                programs::build_in(&workspace)?;
            }
        }
        Xtask::Kernels { update } => nvrtc::check(&Workspace::set_up()?, update)?,
        Xtask::SelfcheckFolder(args) => selfcheck::folder(&args)?,
        Xtask::Serve { args } => {
            let workspace = Workspace::set_up()?;
            workspace.build(Profile::Release)?;
            let realm = workspace.binary(Profile::Release, "realm");
            // Replaces this process, so that signals reach the server itself.
            let error = Command::new(&realm).arg("serve").args(args).exec();
            return Err(error).with_context(|| format!("cannot start {}", realm.display()));
        }
        Xtask::Test { steps } => return test::test(&steps),
        Xtask::Faults(args) => faults::faults(&args)?,
        Xtask::Loadtest(args) => return loadtest::loadtest(&args),
    }
    Ok(ExitCode::SUCCESS)
}
