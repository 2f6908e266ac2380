//! Finds what compiles for WebAssembly on this machine.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::bail;

/// The target of programs: no system beneath, as there is none for them.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's cargo. Beside rustup's, it is not the first on the PATH.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where Debian's package `rust-web-src` puts the standard library.
const DEBIAN_STD: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// What compiles for WebAssembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The cargo on the PATH, whose compiler has the target's standard library.
    Ready,
    /// Debian's, which has to compile the standard library too, with this linker.
    Debian {
        /// The name of a program on the PATH.
        linker: &'static str,
    },
}

impl Toolchain {
    /// The first there is of: the toolchain that is used in `dir`, if it has the target; the same,
    /// after rustup added the target to it; Debian's.
    pub(crate) fn find(dir: &Path) -> anyhow::Result<Self> {
        if has_target(dir) || add_target(dir) && has_target(dir) {
            return Ok(Toolchain::Ready);
        }
        let debian = [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_STD];
        let linker = ["rust-lld", "wasm-ld"]
            .into_iter()
            .find(|name| on_path(name));
        match linker {
            Some(linker) if debian.iter().all(|file| Path::new(file).is_file()) => {
                Ok(Toolchain::Debian { linker })
            }
            _ => bail!(
                "no Rust toolchain here compiles for {TARGET}: `rustup target add {TARGET}`, or, \
                 on Debian, `apt-get install rustc-web cargo-web rust-web-src lld`"
            ),
        }
    }

    /// A command of cargo, to be run in `dir`.
    pub(crate) fn cargo(self, command: &str, dir: &Path) -> Command {
        let mut cargo;
        match self {
            Toolchain::Ready => {
                cargo = Command::new("cargo");
                cargo.arg(command);
            }
            Toolchain::Debian { linker } => {
                cargo = Command::new(DEBIAN_CARGO);
                cargo
                    .arg(command)
                    .env("RUSTC", DEBIAN_RUSTC)
                    // What follows is for rustc's own developers, says rustc, unless told this.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
                if command == "build" {
                    cargo.arg("-Zbuild-std=std,panic_abort");
                }
            }
        }
        cargo.current_dir(dir).stdin(Stdio::null());
        cargo
    }
}

/// Whether the compiler that is used in `dir` has the target's standard library.
fn has_target(dir: &Path) -> bool {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(dir)
        .stderr(Stdio::null())
        .output();
    // The folder is named even where there is none.
    output.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(folder.trim_end()).is_dir()
    })
}

/// Has rustup add the target to the toolchain that is used in `dir`. What it says is for the user.
fn add_target(dir: &Path) -> bool {
    on_path("rustup")
        && Command::new("rustup")
            .args(["target", "add", TARGET])
            .current_dir(dir)
            .status()
            .is_ok_and(|status| status.success())
}

/// Whether `name` is a program on the PATH.
fn on_path(name: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).any(|dir| dir.join(name).is_file())
}
