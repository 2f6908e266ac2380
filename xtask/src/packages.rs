//! Programs that are there, and packages that are put there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

/// Fills `folder` by `install` unless that was done before from the same `pins`.
pub(crate) fn install_once(
    folder: &Path,
    pins: &Path,
    install: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let stamp = folder.join("installed-from");
    let wanted = fs::read(pins).with_context(|| format!("cannot read {}", pins.display()))?;
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    println!("installing the packages of {}", pins.display());
    install()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// What a program says its version is, in numbers; none if there is no such program.
pub(crate) fn version(program: &str) -> Option<Vec<u32>> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    Some(numbers(&String::from_utf8_lossy(&output.stdout)))
}

/// The numbers in `v20.1.2` or `Python 3.11.7`.
fn numbers(version: &str) -> Vec<u32> {
    let version = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    version
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::{install_once, numbers};

    #[test]
    fn versions_are_read() {
        assert_eq!(numbers("Python 3.11.7\n"), [3, 11, 7]);
        assert_eq!(numbers("v20.1.2"), [20, 1, 2]);
        assert_eq!(numbers("Python 3.15.0rc1"), [3, 15, 0]);
        assert!(numbers("none").is_empty());
    }

    #[test]
    fn packages_are_installed_again_only_when_their_pins_change() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (folder, pins) = (dir.path().join("packages"), dir.path().join("pins"));
        let installs = Cell::new(0);
        let install = || {
            installs.set(installs.get() + 1);
            Ok(fs::create_dir(&folder)?)
        };
        for (text, expected) in [("a", 1), ("a", 1), ("b", 2), ("b", 2)] {
            fs::write(&pins, text).expect("written");
            install_once(&folder, &pins, install).expect("installs");
            assert_eq!(installs.get(), expected);
        }
    }

    #[test]
    fn an_installation_that_failed_is_begun_anew() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (folder, pins) = (dir.path().join("packages"), dir.path().join("pins"));
        fs::write(&pins, "a").expect("written");
        let fail = || {
            fs::create_dir(&folder)?;
            anyhow::bail!("no network")
        };
        install_once(&folder, &pins, fail).expect_err("fails");
        install_once(&folder, &pins, || Ok(fs::create_dir(&folder)?))
            .expect("begins without the old folder");
    }
}
