//! The file of API keys: what `realm api-key` writes and every gateway reads.
//!
//! It holds no key, only SHA-256 digests: keys are 32 random characters besides the start that
//! names them, far beyond guessing, so a slow hash would only slow down who asks.
//!
//! Whoever changes the file holds a lock beside it, and puts a new file in its place: readers see
//! the one before or the one after, and of two changes at once neither is lost.

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::digest::Digest;

/// What every key begins with, as OpenAI's do: scanners for leaked secrets know it.
const MARK: &str = "sk-";
/// Characters of a key that name it in lists and logs, its mark included.
const PREFIX: usize = MARK.len() + 8;
/// Characters of a key.
pub(super) const LENGTH: usize = PREFIX + 32;
/// Characters that a double click selects as one word.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key in full. It is shown once, and never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn generate() -> io::Result<Self> {
        let mut key = MARK.to_owned();
        while key.len() < LENGTH {
            let mut bytes = [0; 64];
            getrandom::fill(&mut bytes)?;
            // Each character as likely as any other: the bytes of an incomplete round are left out.
            let whole = (256 / ALPHABET.len() * ALPHABET.len()) as u8;
            let fair = bytes.iter().filter(|&&byte| byte < whole);
            let characters =
                fair.map(|&byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            key.extend(characters.take(LENGTH - key.len()));
        }
        Ok(Secret(key))
    }

    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// The part of a key that names it and is no secret. `None`: this is no key.
pub fn prefix(key: &str) -> Option<&str> {
    key.get(..PREFIX).filter(|prefix| prefix.starts_with(MARK))
}

/// What is known of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// How the key begins; no two keys of a file begin alike.
    pub prefix: String,
    /// Whose it is.
    pub tenant: String,
    /// What its owner calls it.
    pub name: String,
    /// Of the whole key.
    pub sha256: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is void; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whether it may be used.
    pub enabled: bool,
}

/// Whether a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It may.
    Active,
    /// Somebody has disabled it.
    Disabled,
    /// Its time is over.
    Expired,
}

impl Display for KeyState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KeyState::Active => "active",
            KeyState::Disabled => "disabled",
            KeyState::Expired => "expired",
        })
    }
}

impl KeyRecord {
    /// What is to be kept of a new key.
    fn new(key: &Secret, tenant: &str, name: &str, expires: Option<Timestamp>) -> Self {
        KeyRecord {
            prefix: key.0[..PREFIX].to_owned(),
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            sha256: Digest::of(key.0.as_bytes()),
            created: Timestamp::now(),
            expires,
            enabled: true,
        }
    }

    /// Whether this is the record of `key`, in a time that tells nothing about how alike they are.
    pub fn is_of(&self, key: &str) -> bool {
        Digest::of(key.as_bytes()).0.ct_eq(&self.sha256.0).into()
    }

    /// Whether it may be used now.
    pub fn state(&self, now: Timestamp) -> KeyState {
        match self.expires {
            _ if !self.enabled => KeyState::Disabled,
            Some(end) if end <= now => KeyState::Expired,
            _ => KeyState::Active,
        }
    }
}

/// All keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// In the order in which they were made.
    pub keys: Vec<KeyRecord>,
}

/// The file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system refuses.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is no file of API keys: {reason}; `realm api-key generate` writes one")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it is not there, or is no such file.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let text = std::fs::read(path).map_err(io_error("read", path))?;
        let content = |reason| KeyFileError::Content {
            path: path.to_owned(),
            reason,
        };
        let file: KeyFile = serde_json::from_slice(&text).map_err(|e| content(e.to_string()))?;
        let mut seen = HashSet::new();
        for key in &file.keys {
            if prefix(&key.prefix) != Some(&key.prefix) {
                return Err(content(format!("`{}` is no start of a key", key.prefix)));
            }
            if !seen.insert(&key.prefix) {
                return Err(content(format!("two keys begin with {}", key.prefix)));
            }
        }
        Ok(file)
    }

    /// Makes a key and adds its record. Returns the key, which nobody can find out again.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn add(
        &mut self,
        tenant: &str,
        name: &str,
        expires: Option<Timestamp>,
    ) -> io::Result<Secret> {
        loop {
            let key = Secret::generate()?;
            let record = KeyRecord::new(&key, tenant, name, expires);
            if self.keys.iter().all(|other| other.prefix != record.prefix) {
                self.keys.push(record);
                return Ok(key);
            }
        }
    }

    /// Changes a file, which need not exist yet, and returns what `change` does. If that is an
    /// error, nothing is changed.
    ///
    /// # Errors
    /// That of `change`, or if the file cannot be read or written.
    pub fn edit<T, E: From<KeyFileError>>(
        path: &Path,
        change: impl FnOnce(&mut KeyFile) -> Result<T, E>,
    ) -> Result<T, E> {
        // Of a link, the file that it leads to: others may read that one by its own name.
        let real = path.canonicalize();
        let path = real.as_deref().unwrap_or(path);
        let _lock = lock(path)?;
        let mut file = match KeyFile::read(path) {
            Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                KeyFile::default()
            }
            read => read?,
        };
        let done = change(&mut file)?;
        file.replace(path).map_err(io_error("write", path))?;
        Ok(done)
    }

    /// Puts this in the place of the file at `path`, all at once.
    fn replace(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let new = beside(path, ".new");
        // What a command left that was killed here.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private().write(true).create_new(true).open(&new)?;
        belong_like(path, &file)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The rename itself is to outlast a power cut too.
        File::open(folder(path))?.sync_all()
    }
}

/// Waits until nobody else changes the file at `path`; it is ours until the lock is dropped.
fn lock(path: &Path) -> Result<Flock<File>, KeyFileError> {
    let lock = beside(path, ".lock");
    let file = private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock);
    let file = file.map_err(io_error("open", &lock))?;
    // Whoever may change the keys may take the lock. It may be somebody else's, who has seen to it.
    let _ = belong_like(path, &file);
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| io_error("lock", &lock)(error.into()))
}

/// Gives a file the owner, group and mode of the one at `path`, if that is there: a gateway that
/// could read the keys is to be able to read those that take their place.
fn belong_like(path: &Path, file: &File) -> io::Result<()> {
    let Ok(old) = std::fs::metadata(path) else {
        return Ok(());
    };
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(old.permissions())
}

/// Nobody else needs to read digests of keys.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    let path = path.to_owned();
    move |source| KeyFileError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_differ() {
        let keys: Vec<_> = (0..100)
            .map(|_| Secret::generate().expect("random"))
            .collect();
        for (i, key) in keys.iter().enumerate() {
            let key = key.reveal();
            assert_eq!(key.len(), LENGTH);
            assert!(key.starts_with(MARK));
            assert!(key[MARK.len()..].bytes().all(|c| ALPHABET.contains(&c)));
            assert!(keys[..i].iter().all(|other| other.reveal() != key));
        }
    }

    #[test]
    fn a_record_is_of_one_key() {
        let (key, other) = (Secret::generate(), Secret::generate());
        let (key, other) = (key.expect("random"), other.expect("random"));
        let record = KeyRecord::new(&key, "acme", "ci", None);
        assert!(record.is_of(key.reveal()));
        assert!(!record.is_of(other.reveal()) && !record.is_of(""));
        assert_eq!(prefix(key.reveal()), Some(record.prefix.as_str()));
        let text = serde_json::to_string(&record).expect("serialises");
        assert!(
            !text.contains(&key.reveal()[PREFIX..]),
            "the key is not stored"
        );
        assert_eq!(
            serde_json::from_str::<KeyRecord>(&text).expect("reads"),
            record
        );
    }

    #[test]
    fn a_key_ends_when_it_is_disabled_or_expires() {
        let key = Secret::generate().expect("random");
        let at = |second| Timestamp::from_second(second).expect("in range");
        let mut record = KeyRecord::new(&key, "acme", "ci", Some(at(10)));
        assert_eq!(record.state(at(9)), KeyState::Active);
        assert_eq!(record.state(at(10)), KeyState::Expired);
        record.enabled = false;
        assert_eq!(record.state(at(9)), KeyState::Disabled);
    }

    #[test]
    fn two_changes_at_once_lose_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keys.json");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        KeyFile::edit(&path, |file| Ok(file.add("acme", "ci", None)?))
                            .unwrap_or_else(|e: anyhow::Error| panic!("{e}"));
                    }
                });
            }
        });
        assert_eq!(KeyFile::read(&path).expect("reads").keys.len(), 40);
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keys.json");
        let key = Secret::generate().expect("random");
        let edit = |fail: bool| {
            KeyFile::edit(&path, |file| {
                file.keys.push(KeyRecord::new(&key, "acme", "ci", None));
                match fail {
                    true => Err(anyhow::anyhow!("changed its mind")),
                    false => Ok(()),
                }
            })
        };
        edit(false).expect("writes");
        edit(true).expect_err("fails");
        assert_eq!(KeyFile::read(&path).expect("reads").keys.len(), 1);
        // A second one of that start could not be told from the first.
        edit(false).expect("writes");
        let error = KeyFile::read(&path).expect_err("ambiguous").to_string();
        assert!(error.contains("two keys"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keys.json");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writes");
            KeyFile::read(&path).expect_err("bad").to_string()
        };
        for (text, what) in [
            ("", "EOF"),
            ("{}", "keys"),
            ("{\"keys\":[{\"prefix\":\"sk-12345678\"}]}", "tenant"),
            ("{\"keys\":[],\"kyes\":1}", "kyes"),
        ] {
            let error = read(text);
            assert!(
                error.contains(what) && error.contains("keys.json"),
                "{error}"
            );
        }
    }
}
