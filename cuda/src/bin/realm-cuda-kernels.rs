//! Compiles every kernel for every kind of device, and compares what each takes of one with the table in
//! `kernels/resources.txt`. Needs NVRTC, and no GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use realm_cuda::Kernel;
use realm_cuda::catalogue::{kernels, units};
use realm_cuda::check;
use realm_cuda::compile::{CAPABILITIES, Capability, Nvrtc};

const USAGE: &str = "usage: realm-cuda-kernels NVRTC_FOLDER [--update]";

/// What a kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Resources {
    /// Of a thread.
    registers: u32,
    /// Bytes of a thread, that what does not fit registers is written to and read from.
    spilled: u32,
    /// Bytes of a thread's stack.
    stack: u32,
    /// Bytes of a block, without what a launch adds.
    shared: u32,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut folder = None;
    let mut update = false;
    for argument in env::args_os().skip(1) {
        if argument == "--update" {
            update = true;
        } else if folder.replace(PathBuf::from(argument)).is_some() {
            return Err(USAGE.into());
        }
    }
    let folder = folder.ok_or(USAGE)?;
    let nvrtc = Nvrtc::load(Some(&folder))?;
    let table = compile_all(nvrtc)?;
    print!("{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/resources.txt");
    let error = |e| format!("{}: {e}", path.display());
    if update {
        return fs::write(&path, table).map_err(error);
    }
    let recorded = fs::read_to_string(&path).map_err(error)?;
    if recorded == table {
        return Ok(());
    }
    for line in table
        .lines()
        .filter(|line| !recorded.lines().any(|r| r == *line))
    {
        eprintln!("not recorded: {line}");
    }
    for line in recorded
        .lines()
        .filter(|line| !table.lines().any(|t| t == *line))
    {
        eprintln!("recorded:     {line}");
    }
    Err(format!(
        "what kernels take has changed: if it should, record it with `cargo xtask kernels --update` ({})",
        path.display()
    ))
}

/// The table of all kernels.
fn compile_all(nvrtc: Nvrtc) -> Result<String, String> {
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for capability in CAPABILITIES {
        // Those compile, and nobody minds what they take.
        for unit in check::units() {
            nvrtc.compile(unit, capability).map_err(|e| e.to_string())?;
        }
        for unit in units() {
            let compiled = nvrtc.compile(unit, capability).map_err(|e| e.to_string())?;
            let mut found = parse(&compiled.log);
            for kernel in kernels().into_iter().filter(|kernel| kernel.unit == unit) {
                let resources = found.remove(kernel.name);
                let resources = resources.ok_or_else(|| {
                    format!("{kernel} is not in {}:\n{}", unit.source.name, compiled.log)
                })?;
                let (key, row) = row(kernel, capability, resources);
                rows.insert(key, row);
            }
            if let Some(name) = found.keys().next() {
                return Err(format!(
                    "{name} in {} is not in the catalogue",
                    unit.source.name
                ));
            }
        }
    }
    let mut table = format!(
        "{:<44} {:>6} {:>9} {:>7} {:>6} {:>7}\n",
        "kernel", "device", "registers", "spilled", "stack", "shared"
    );
    table.extend(rows.into_values());
    Ok(table)
}

fn row(kernel: Kernel, capability: Capability, taken: Resources) -> (String, String) {
    let name = kernel.to_string();
    let Resources {
        registers,
        spilled,
        stack,
        shared,
    } = taken;
    let device = capability.to_string();
    let row =
        format!("{name:<44} {device:>6} {registers:>9} {spilled:>7} {stack:>6} {shared:>7}\n");
    (format!("{name} {device}"), row)
}

/// What the assembler says of each kernel, and of the functions that it calls.
fn parse(log: &str) -> BTreeMap<String, Resources> {
    let mut found: BTreeMap<String, Resources> = BTreeMap::new();
    let mut current = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            current = Some(found.entry(name.to_owned()).or_default());
        }
        let Some(kernel) = current.as_mut() else {
            continue;
        };
        let before = |what: &str| -> Option<u32> {
            let (numbers, _) = line.split_once(what)?;
            numbers.trim_end().rsplit(' ').next()?.parse().ok()
        };
        kernel.stack = kernel.stack.max(before("bytes stack frame").unwrap_or(0));
        kernel.spilled += before("bytes spill stores").unwrap_or(0);
        kernel.spilled += before("bytes spill loads").unwrap_or(0);
        if line.contains("Used ") {
            kernel.registers = before("registers").unwrap_or(0);
            kernel.shared = before("bytes smem").unwrap_or(0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_assembler_says_is_read() {
        let log = "\
ptxas info    : 12 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 18.913 ms
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 25 registers, used 0 barriers
";
        let found = parse(log);
        let one = Resources {
            registers: 32,
            spilled: 12,
            stack: 16,
            shared: 128,
        };
        assert_eq!(found["one"], one);
        let two = Resources {
            registers: 25,
            ..Resources::default()
        };
        assert_eq!(found["two"], two);
        assert_eq!(found.len(), 2);
    }
}
