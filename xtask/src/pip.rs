//! Installing Python packages.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// `pip install` of a Python, without what differs between users. The caller collects standard
/// error for [`explain`].
pub(crate) fn install(python: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(python);
    command
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(["--no-deps", "--only-binary=:all:"])
        // Settings of a user's own that contradict a folder that is given.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// One line about why pip could not install `what`, from what it wrote to standard error. pip's
/// own words are not repeated: they may name the hosts and tokens of a private index.
pub(crate) fn explain(what: &str, log: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if says(&["DO NOT MATCH THE HASHES"]) {
        format!(
            "pip got something else than the pinned {what} (the hashes differ): look at what your package index or \
             proxy serves"
        )
    } else if says(&["No space left"]) {
        format!("the disk is full: make room for {what}")
    } else if says(&[
        "No matching distribution",
        "Could not find a version",
        "Retrying",
        "HTTP error",
    ]) {
        // An index that cannot be reached is reported as one that has nothing.
        format!(
            "pip's package index cannot be reached, or does not have {what} for this platform: check the network and \
             pip's settings (`pip config list`)"
        )
    } else {
        format!("pip cannot install {what}: `python3 -m pip download` of it may say why")
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn says_why_and_names_no_host() {
        let unreachable = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError' \
                           https://user:token@index.example/simple/torch/\nERROR: No matching distribution found";
        let cases = [
            (unreachable, "cannot be reached"),
            (
                "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
                "hashes differ",
            ),
            (
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            (
                "ERROR: something new from https://index.example/",
                "may say why",
            ),
        ];
        for (log, reason) in cases {
            let line = explain("torch 2.11.0", log);
            assert!(
                line.contains(reason) && line.contains("torch 2.11.0"),
                "{line}"
            );
            assert!(!line.contains('\n') && !line.contains("example"), "{line}");
        }
    }
}
