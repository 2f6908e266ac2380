//! NVRTC, NVIDIA's compiler as a library, in the cache that all checkouts of this user share. It needs no GPU.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::libtorch::{cache_folder, keep};
use crate::pip;
use crate::workspace::{Workspace, run};

const VERSION: &str = "13.0.88";
/// The wheel for Linux on x86-64, as pip reads it.
const REQUIREMENTS: &str = "\
nvidia-cuda-nvrtc==13.0.88 --hash=sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
";
const PLATFORM: &str = "manylinux_2_12_x86_64";
/// What is loaded of it, seen from its folder.
const LIBRARIES: [&str; 2] = [
    "nvidia/cu13/lib/libnvrtc.so.13",
    "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
];

/// Compiles every kernel, and compares what each takes of a device with the table, or writes that.
pub(crate) fn check(workspace: &Workspace, update: bool) -> anyhow::Result<()> {
    let nvrtc = ensure()?;
    let mut cargo = workspace.cargo(["run", "--quiet", "--package", "realm-cuda"]);
    cargo.args(["--bin", "realm-cuda-kernels", "--"]).arg(nvrtc);
    if update {
        cargo.arg("--update");
    }
    run(&mut cargo)
}

/// The folder of its libraries, which are fetched first if they have to be.
fn ensure() -> anyhow::Result<PathBuf> {
    let folder = cache_folder()?.join(format!("nvrtc-{VERSION}"));
    if !is_complete(&folder) {
        keep("NVRTC", &folder, is_complete, fill)?;
    }
    Ok(folder.join("nvidia/cu13/lib"))
}

fn fill(folder: &Path) -> anyhow::Result<()> {
    println!("fetching NVRTC {VERSION}: 90 MB to download, once for this user");
    pip::fetch(
        folder,
        &format!("NVRTC {VERSION}"),
        REQUIREMENTS,
        &[PLATFORM],
    )?;
    if let Some(missing) = LIBRARIES.iter().find(|name| !folder.join(name).is_file()) {
        bail!("the wheel of NVRTC {VERSION} does not hold {missing}");
    }
    // What an older driver would need.
    for name in ["libnvrtc.alt.so.13", "libnvrtc-builtins.alt.so.13.0"] {
        let path = folder.join("nvidia/cu13/lib").join(name);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    LIBRARIES.iter().all(|name| folder.join(name).is_file())
}
