//! What the worker loads to compute on an NVIDIA GPU, beside libtorch's own libraries: NVIDIA's, in the cache that all
//! checkouts of this user share. The driver is the machine's.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::libtorch::{beside, cache_folder, keep};
use crate::pip;

/// The release of CUDA that libtorch is built for.
const VERSION: &str = "13.0";
/// The wheels for Linux on x86-64 that the one of libtorch names, as pip reads them, but for those whose libraries the
/// worker does without.
const REQUIREMENTS: &str = "\
nvidia-cublas==13.1.0.3 --hash=sha256:ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171
nvidia-cuda-nvrtc==13.0.88 --hash=sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
nvidia-cudnn-cu13==9.19.0.56 --hash=sha256:d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf
nvidia-cufft==12.0.0.61 --hash=sha256:6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3
nvidia-cufile==1.15.1.6 --hash=sha256:08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44
nvidia-curand==10.4.0.35 --hash=sha256:1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc
nvidia-cusparse==12.6.3.3 --hash=sha256:2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b
nvidia-cusparselt-cu13==0.8.0 --hash=sha256:25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd
nvidia-nccl-cu13==2.28.9 --hash=sha256:e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42
nvidia-nvjitlink==13.0.88 --hash=sha256:13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b
nvidia-nvshmem-cu13==3.4.5 --hash=sha256:290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80
";
const PLATFORMS: [&str; 6] = [
    "manylinux_2_27_x86_64",
    "manylinux_2_18_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_12_x86_64",
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
];

/// What libtorch has for CUDA that the worker loads.
const TORCH: [&str; 4] = [
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libc10_cuda.so",
    "torch/lib/libtorch_nvshmem.so",
    "torch/lib/libcaffe2_nvrtc.so",
];
/// What of the wheels that loads, or compiles kernels.
const LIBRARIES: [&str; 13] = [
    "nvidia/cu13/lib/libcublas.so.13",
    "nvidia/cu13/lib/libcublasLt.so.13",
    "nvidia/cu13/lib/libcufft.so.12",
    "nvidia/cu13/lib/libcufile.so.0",
    "nvidia/cu13/lib/libcurand.so.10",
    "nvidia/cu13/lib/libcusparse.so.12",
    "nvidia/cu13/lib/libnvJitLink.so.13",
    "nvidia/cu13/lib/libnvrtc.so.13",
    "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
    "nvidia/cudnn/lib/libcudnn.so.9",
    "nvidia/cusparselt/lib/libcusparseLt.so.0",
    "nvidia/nccl/lib/libnccl.so.2",
    "nvidia/nvshmem/lib/libnvshmem_host.so.3",
];

/// All of it: where the libraries are beside each other, and where they are now. Those that do not lie beside libtorch
/// are fetched first if they have to be.
pub(crate) fn libraries(libtorch: &Path) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let mut libraries = Vec::new();
    for name in TORCH {
        let path = beside(libtorch, name);
        if !path.is_file() {
            bail!(
                "{} is missing: LIBTORCH holds a libtorch for CPUs alone; point it at one for CUDA {VERSION}, or unset \
                 it to have that fetched",
                path.display()
            );
        }
        libraries.push((name, path));
    }
    let there = LIBRARIES.map(|name| (name, beside(libtorch, name)));
    if there.iter().all(|(_, path)| path.is_file()) {
        libraries.extend(there);
    } else {
        let folder = ensure()?;
        libraries.extend(LIBRARIES.map(|name| (name, folder.join(name))));
    }
    Ok(libraries)
}

fn ensure() -> anyhow::Result<PathBuf> {
    let folder = cache_folder()?.join(format!("cuda-{VERSION}"));
    if !is_complete(&folder) {
        keep("the libraries of CUDA", &folder, is_complete, fill)?;
    }
    Ok(folder)
}

fn is_complete(folder: &Path) -> bool {
    LIBRARIES.iter().all(|name| folder.join(name).is_file())
}

fn fill(folder: &Path) -> anyhow::Result<()> {
    println!("fetching libraries of CUDA {VERSION}: 1.8 GB to download, once for this user");
    let what = format!("the libraries of CUDA {VERSION}");
    pip::fetch(folder, &what, REQUIREMENTS, &PLATFORMS)?;
    if let Some(missing) = LIBRARIES.iter().find(|name| !folder.join(name).is_file()) {
        bail!("the wheels of CUDA {VERSION} do not hold {missing}");
    }
    let kept = LIBRARIES.iter().map(|name| folder.join(name)).collect();
    drop_others(&folder.join("nvidia"), &kept)
}

/// Deletes all files but these. Licences lie elsewhere.
fn drop_others(folder: &Path, kept: &HashSet<PathBuf>) -> anyhow::Result<()> {
    let cannot = || format!("cannot clear {}", folder.display());
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_dir() {
            drop_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(cannot)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_loaded_is_dropped() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [kept, other] = ["a/lib/kept", "a/include/other"].map(|name| dir.path().join(name));
        for path in [&kept, &other] {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "").expect("written");
        }
        drop_others(dir.path(), &HashSet::from([kept.clone()])).expect("cleared");
        assert!(kept.is_file() && !other.exists());
    }
}
