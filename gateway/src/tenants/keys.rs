//! The API keys in force: those of the file, read again when it changes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;

use super::key_file::{KeyFile, KeyFileError, KeyRecord, KeyState, prefix};
use crate::stamp::Stamp;

/// How often the file is looked at. A key that is disabled works for as long at most, and as it
/// takes to read the file.
const LOOK: Duration = Duration::from_millis(250);

/// A key is no good. What a client hears is the same for all that it could not know of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// No such key.
    #[error("no such key")]
    Unknown,
    /// There is, and it must not be used any more.
    #[error("the key is {0}")]
    Ended(KeyState),
}

/// The keys in force.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    /// By how they begin.
    keys: RwLock<HashMap<String, Arc<KeyRecord>>>,
}

impl Keys {
    /// Reads the keys of a file.
    ///
    /// # Errors
    /// If it is not there, or is no such file.
    pub fn open(path: &Path) -> Result<Arc<Self>, KeyFileError> {
        let keys = RwLock::new(by_prefix(KeyFile::read(path)?));
        Ok(Arc::new(Keys {
            path: path.to_owned(),
            keys,
        }))
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// If it is nobody's, or may not be used any more.
    pub fn check(&self, key: &str) -> Result<Arc<KeyRecord>, BadKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let record = prefix(key).and_then(|prefix| keys.get(prefix));
        let record = record
            .filter(|record| record.is_of(key))
            .ok_or(BadKey::Unknown)?;
        match record.state(Timestamp::now()) {
            KeyState::Active => Ok(record.clone()),
            ended => Err(BadKey::Ended(ended)),
        }
    }

    /// Follows the changes of the file for ever. While it cannot be read, what was read last stays
    /// in force: a gateway that serves is not to stop for a slip of an editor.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = Seen::default();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let keys = self.clone();
            // A file system that hangs must not take a thread of the runtime.
            let before = seen.clone();
            let looked = tokio::task::spawn_blocking(move || keys.look(before)).await;
            seen = looked.unwrap_or(seen);
        }
    }

    /// Reads the file if it is not as it was `seen`. Returns how it is.
    fn look(&self, seen: Seen) -> Seen {
        // What is written while we read will have another stamp than the one taken before.
        let stamp = std::fs::metadata(&self.path).ok().map(|m| Stamp::of(&m));
        if stamp.is_some() && stamp == seen.read {
            return seen;
        }
        let error = match KeyFile::read(&self.path) {
            Ok(file) => {
                let keys = by_prefix(file);
                let count = keys.len();
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                if seen.read.is_some() {
                    tracing::info!(path = %self.path.display(), count, "read the API keys again");
                }
                return Seen {
                    read: stamp,
                    complaint: None,
                };
            }
            // It may be read the next time, whether it changes or not.
            Err(error) => error.to_string(),
        };
        if seen.complaint.as_ref() != Some(&error) {
            tracing::error!(error, "the API keys read last stay in force");
        }
        Seen {
            complaint: Some(error),
            ..seen
        }
    }
}

/// What is known of the file.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    /// How it was when it was read.
    read: Option<Stamp>,
    /// What was wrong with it since, as the log says once.
    complaint: Option<String>,
}

fn by_prefix(file: KeyFile) -> HashMap<String, Arc<KeyRecord>> {
    let keys = file.keys.into_iter();
    keys.map(|key| (key.prefix.clone(), Arc::new(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_file_is_in_force_after_a_look() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keys.json");
        let edit = |change: &dyn Fn(&mut KeyFile)| {
            KeyFile::edit(&path, |file| {
                change(file);
                Ok::<_, KeyFileError>(())
            })
            .expect("writes");
        };
        let mut file = KeyFile::default();
        let [first, second] = [(); 2].map(|()| file.add("acme", "ci", None).expect("random"));
        edit(&|now| *now = file.clone());
        let keys = Keys::open(&path).expect("reads");
        let tenant = |key| keys.check(key).map(|record| record.tenant.clone());
        assert_eq!(tenant(first.reveal()), Ok("acme".to_owned()));
        let mut wrong = first.reveal().to_owned();
        wrong.pop();
        let longer = format!("{wrong}0x");
        for wrong in ["", "sk-", "sk-ä€ä€ä€", &wrong, &longer] {
            assert_eq!(tenant(wrong), Err(BadKey::Unknown), "{wrong}");
        }

        edit(&|file| file.keys[0].enabled = false);
        let seen = keys.look(Seen::default());
        assert_eq!(
            tenant(first.reveal()),
            Err(BadKey::Ended(KeyState::Disabled))
        );
        assert_eq!(tenant(second.reveal()), Ok("acme".to_owned()));
        assert_eq!(keys.look(seen.clone()), seen);

        // What is no file of keys changes nothing.
        std::fs::write(&path, "{").expect("writes");
        let seen = keys.look(seen);
        std::fs::remove_file(&path).expect("removes");
        let seen = keys.look(seen);
        assert!(seen.complaint.is_some());
        assert_eq!(tenant(second.reveal()), Ok("acme".to_owned()));
        edit(&|file| *file = KeyFile::default());
        assert_eq!(keys.look(seen).complaint, None);
        assert_eq!(tenant(second.reveal()), Err(BadKey::Unknown));
    }
}
