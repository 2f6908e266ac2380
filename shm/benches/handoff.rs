//! `cargo bench -p realm-shm [-- --quick] [-- --cores A,B]`: what a hand-off costs, beside iceoryx2
//! and Unix sockets. The measuring program is `shm/bench`, in a workspace of its own so that no
//! ordinary build pays for iceoryx2; this builds and runs it.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/Cargo.toml");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["run", "--release", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--")
        .args(env::args_os().skip(1).filter(|arg| arg != "--bench"));
    // This program is TARGET/release/deps/NAME, wherever cargo was told to put TARGET.
    if let Some(target) = env::current_exe()
        .ok()
        .as_deref()
        .and_then(|this| this.ancestors().nth(3))
    {
        command.env("CARGO_TARGET_DIR", target.join("bench"));
    }
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot run cargo: {error}");
            ExitCode::FAILURE
        }
    }
}
