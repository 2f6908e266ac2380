//! libtorch, in a cache that all checkouts of this user share.
//!
//! The worker is linked with the path of this folder inside, so its name is part of what a built
//! worker relies on: a folder once in place is never changed, and another version gets another
//! folder.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{self, Path, PathBuf};
use std::process;

use anyhow::{Context, bail};

use crate::wheels::{self, VERSION};

/// What the worker loads, seen from the cache folder.
const REQUIRED: [&str; 6] = [
    "torch/include/torch/csrc/api/include/torch/torch.h",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// Written last, so that its presence says that all the rest is there.
const STAMP: &str = "stamp";

/// Where libtorch is: what LIBTORCH says, or the cache, which is filled first if it has to be.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    if let Some(dir) = env::var_os("LIBTORCH").filter(|dir| !dir.is_empty()) {
        // The worker is linked with this path inside and starts from anywhere.
        let dir = path::absolute(dir)?;
        let version = version(&dir).unwrap_or_else(|| "of no version".into());
        if version != VERSION {
            bail!(
                "LIBTORCH={} holds libtorch {version}: point LIBTORCH at libtorch {VERSION}, or unset it to have \
                 that fetched",
                dir.display()
            );
        }
        return Ok(dir);
    }
    let cache = cache_folder()?;
    let installed = cache.join(format!("libtorch-{VERSION}"));
    if !is_complete(&installed) {
        install(&cache, &installed)?;
    }
    Ok(installed.join("torch"))
}

/// The libraries that the worker loads: where they are beside each other, and where they are now. A
/// libtorch that is not from the cache may do without some.
pub(crate) fn libraries(libtorch: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let is_library = |name: &&str| !name.ends_with(".h");
    let libraries = REQUIRED.into_iter().filter(is_library);
    let found = libraries.map(|name| (name, beside(libtorch, name)));
    found.filter(|(_, path)| path.is_file())
}

/// Where a file would be that lies in libtorch, or beside it.
pub(crate) fn beside(libtorch: &Path, name: &str) -> PathBuf {
    let root = libtorch.parent().unwrap_or(libtorch);
    match name.strip_prefix("torch/") {
        Some(own) => libtorch.join(own),
        None => root.join(name),
    }
}

/// Which libtorch a folder holds, without the build that follows a `+`.
fn version(dir: &Path) -> Option<String> {
    // A Python wheel has the one, a plain libtorch the other.
    let version = match fs::read_to_string(dir.join("version.py")) {
        Ok(python) => {
            let value = python
                .lines()
                .find_map(|line| line.strip_prefix("__version__ = "))?;
            value.trim_matches(['\'', '"']).to_owned()
        }
        Err(_) => fs::read_to_string(dir.join("build-version")).ok()?,
    };
    version.trim().split('+').next().map(str::to_owned)
}

/// The folder of this project in the user's cache.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    // As the XDG specification has it, a relative path counts as none.
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("realm"))
        .context("no folder to keep libtorch and Prometheus in: set HOME or XDG_CACHE_HOME")
}

/// Fills a folder of the cache that is not complete: beside its place, and moved there in one step, whoever else
/// does the same. `what` is to be in it.
pub(crate) fn keep(
    what: &str,
    folder: &Path,
    is_complete: impl Fn(&Path) -> bool,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let partial = folder.with_added_extension(process::id().to_string());
    let filled = fill(&partial).and_then(|()| match fs::rename(&partial, folder) {
        Err(_) if is_complete(folder) => Ok(()),
        result => result.with_context(|| format!("cannot move {what} to {}", folder.display())),
    });
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    filled
}

/// Whether a folder holds exactly the wheels that this version pins.
fn is_complete(installed: &Path) -> bool {
    fs::read_to_string(installed.join(STAMP)).is_ok_and(|stamp| stamp == wheels::REQUIREMENTS)
        && REQUIRED.iter().all(|file| installed.join(file).is_file())
}

/// Fills the cache beside its place and moves it there in one step. A second process waits for the
/// first and then finds the work done.
fn install(cache: &Path, installed: &Path) -> anyhow::Result<()> {
    let cannot = |what: &str, path: &Path| {
        format!(
            "cannot {what} {}: set XDG_CACHE_HOME to a folder that can be written",
            path.display()
        )
    };
    fs::create_dir_all(cache).with_context(|| cannot("create", cache))?;
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).with_context(|| cannot("write", &lock_path))?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another set-up to end");
        lock.lock().with_context(|| cannot("lock", &lock_path))?;
    }
    if is_complete(installed) {
        return Ok(());
    }
    let partial = installed.with_added_extension("partial");
    // What an interrupted set-up left. Nobody else writes there while we hold the lock.
    remove(&partial)?;
    fs::create_dir(&partial).with_context(|| cannot("create", &partial))?;
    let result = fill(&partial, installed, &lock);
    if result.is_err() {
        remove(&partial)?;
    }
    result
}

fn fill(partial: &Path, installed: &Path, lock: &File) -> anyhow::Result<()> {
    wheels::install(partial, lock)?;
    if let Some(missing) = REQUIRED.iter().find(|file| !partial.join(file).is_file()) {
        bail!(
            "the wheels of libtorch {VERSION} do not hold {missing} on this platform: set LIBTORCH to one that does"
        );
    }
    fs::write(partial.join(STAMP), wheels::REQUIREMENTS)?;
    remove(installed)?;
    fs::rename(partial, installed)
        .with_context(|| format!("cannot move libtorch to {}", installed.display()))
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::version;

    #[test]
    fn both_kinds_of_libtorch_tell_their_version() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert_eq!(version(dir.path()), None);
        fs::write(dir.path().join("build-version"), "2.10.0+cpu\n").expect("written");
        assert_eq!(version(dir.path()).as_deref(), Some("2.10.0"));
        let python =
            "__all__ = ['__version__', 'debug']\n__version__ = '2.11.0+cu130'\ndebug = False\n";
        fs::write(dir.path().join("version.py"), python).expect("written");
        assert_eq!(version(dir.path()).as_deref(), Some("2.11.0"));
    }
}
