//! The `realm` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    realm_gateway::cli::main()
}
