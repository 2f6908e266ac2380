//! `cargo xtask faults`: tests of the gateway that `cargo test` runs in a short form, in full.

use clap::ValueEnum;

use crate::workspace::{Profile, Workspace, run};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Suites to run, in this order [default: all]
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Random faults under 32 streams
    #[arg(long, default_value_t = 1000, value_name = "N")]
    count: u64,
    /// Servers that are told to end, and models that are swapped, under load
    #[arg(long, default_value_t = 100, value_name = "N")]
    rounds: u64,
    /// Seed of everything that is random
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
}

/// Tests that belong together.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Suite {
    /// Kill the worker at every token of requests of every kind
    Resume,
    /// Kill, stop, slow and corrupt workers at random under 32 streams
    Random,
    /// End servers under load by SIGTERM
    Drain,
    /// Swap a model under load for another version of it
    Swap,
    /// Kill the worker at every call that programs and processors make of it
    Calls,
}

impl Suite {
    /// Its file in the gateway's tests.
    fn file(self) -> &'static str {
        match self {
            Suite::Resume => "resume",
            Suite::Random => "faults",
            Suite::Drain => "drain",
            Suite::Swap => "swap",
            Suite::Calls => "calls",
        }
    }
}

pub(crate) fn faults(args: &Args) -> anyhow::Result<()> {
    let suites = match &*args.suites {
        [] => Suite::value_variants(),
        chosen => chosen,
    };
    let workspace = Workspace::set_up()?;
    workspace.build(Profile::Dev)?;
    for suite in suites {
        let test = ["test", "--package", "realm-gateway", "--test", suite.file()];
        let mut command = workspace.cargo(test.into_iter().chain(["--", "--nocapture"]));
        command
            .env("REALM_TEST_STRIDE", "1")
            .env("REALM_TEST_FAULTS", args.count.to_string())
            .env("REALM_TEST_ROUNDS", args.rounds.to_string())
            .env("REALM_TEST_SEED", args.seed.to_string());
        run(&mut command)?;
    }
    Ok(())
}
