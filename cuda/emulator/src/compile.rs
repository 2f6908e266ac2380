//! Compiling kernels for the CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use realm_cuda::Unit;
use realm_cuda::catalogue::HEADERS;
use sha2::{Digest, Sha256};

const EMULATOR: &str = include_str!("../emulator.h");

const OPTIONS: [&str; 8] = [
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-O2",
    "-g1",
    // As on the device: multiplications and additions are contracted only where a kernel says so.
    "-ffp-contract=off",
    // Kernels of the same name in several units must not be taken for one another.
    "-fvisibility=hidden",
    "-fno-gnu-unique",
];

/// `fmaf` as an instruction, where this CPU has it.
const NATIVE: &str = "-march=native";

/// The compiled unit, which is made unless `folder` has it.
pub(crate) fn library(folder: &Path, unit: Unit) -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut hash = Sha256::new();
    for part in [compiler.as_str(), EMULATOR, unit.source.text, NATIVE] {
        hash.update(part);
        hash.update([0]);
    }
    for header in HEADERS {
        hash.update(header.text);
    }
    for option in OPTIONS
        .into_iter()
        .chain(unit.defines().iter().map(String::as_str))
    {
        hash.update(option);
    }
    let hash: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let name = format!("{}-{hash}", unit.to_string().replace('/', "-"));
    let path = folder.join(format!("{name}.so"));
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let work = tempfile::tempdir_in(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let write = |name: &str, text: &str| {
        let file = work.path().join(name);
        fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))
    };
    write("emulator.h", EMULATOR)?;
    write(unit.source.name, unit.source.text)?;
    for header in HEADERS {
        write(header.name, header.text)?;
    }
    let made = work.path().join("made.so");
    let output = Command::new(&compiler)
        .args(OPTIONS)
        .arg(NATIVE)
        .args(unit.defines())
        .args(["-x", "c++"])
        .arg(work.path().join(unit.source.name))
        .arg("-o")
        .arg(&made)
        .output()
        .map_err(|e| format!("{compiler}: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    // In one step: another test may look for it meanwhile.
    fs::rename(&made, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}
