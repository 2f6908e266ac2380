//! The folder of programs, which several gateways and commands may share.
//!
//! ```text
//! tenants/TENANT/NAME.json    what a tenant has stored under a name; the tenant is percent-encoded
//! components/SHA256.wasm      what was sent
//! compiled/SHA256-FINGERPRINT what was made of it, behind a code that only who has the key can make
//! key                         that key
//! lock                        held by who changes anything
//! ```
//!
//! Every file is written beside its place and then put there whole, so readers need no lock. Nothing
//! but a record makes a component be used: a record goes first and what it names after it, and comes
//! last.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tempfile::NamedTempFile;

use super::builtin;
use super::compiler::{Compiled, Fingerprint};
use super::image::{Draft, Image};
use super::{Kind, ProgramName};
use crate::digest::Digest;

/// Bytes of the key, and of the code before what was compiled.
const KEY: usize = 32;
/// What a file is called that is not whole yet.
const UNFINISHED: &str = ".new-";
/// Age at which such a file is one that somebody left who was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What a tenant has stored under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramRecord {
    /// The name.
    pub name: ProgramName,
    /// What it is for.
    pub kind: Kind,
    /// The model that it is made for, if it is for one.
    pub base: Option<String>,
    /// Of the component.
    pub sha256: Digest,
    /// Length of the component.
    pub bytes: u64,
    /// When it was stored.
    pub created: Timestamp,
}

impl ProgramRecord {
    /// Whether it is the one that everybody has without having stored it.
    pub fn is_builtin(&self) -> bool {
        builtin::chat() == Some(self)
    }
}

/// Something in the folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", .path.display())]
pub struct StoreError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What became of storing a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Stored,
    /// The tenant has as many as it may, and none of that name.
    Full,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// Of nothing yet, by the key.
    code: Hmac<Sha256>,
}

impl Store {
    /// Opens a folder, and makes it what it has to be.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        for folder in ["components", "compiled", "tenants"] {
            make_folder(&dir.join(folder))?;
        }
        let key = read_or_make_key(dir)?;
        let code = <Hmac<Sha256> as Mac>::new_from_slice(&key);
        let code = code.map_err(|e| io_error("use", &dir.join("key"))(io::Error::other(e)))?;
        Ok(Store {
            dir: dir.to_owned(),
            code,
        })
    }

    /// What a tenant has stored under a name.
    pub(super) fn record(
        &self,
        tenant: &str,
        name: &ProgramName,
    ) -> Result<Option<ProgramRecord>, StoreError> {
        read_record(&self.record_path(tenant, name))
    }

    /// All that a tenant has stored, by name.
    pub(super) fn records(&self, tenant: &str) -> Result<Vec<ProgramRecord>, StoreError> {
        let mut records = read_records(&self.tenant_folder(tenant))?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Stores a program in the place of the one of its name, unless it would be more than `most` of
    /// the tenant's.
    pub(super) fn put(
        &self,
        tenant: &str,
        most: usize,
        record: &ProgramRecord,
        component: &[u8],
        compiled: &Compiled,
    ) -> Result<Put, StoreError> {
        let folder = self.tenant_folder(tenant);
        make_folder(&folder)?;
        // What takes long is done before anybody has to wait.
        let component = self.unfinished("components", |file| file.write_all(component))?;
        let compiled = self.sign(&record.sha256, compiled)?;
        let mut text = serde_json::to_vec_pretty(record).unwrap_or_default();
        text.push(b'\n');
        let path = self.record_path(tenant, &record.name);
        let text = unfinished(&folder, |file| file.write_all(&text))?;

        let _lock = self.lock()?;
        let old = read_record(&path)?;
        if old.is_none() && read_records(&folder)?.len() >= most {
            return Ok(Put::Full);
        }
        finish(component, &self.component_path(&record.sha256))?;
        finish(compiled.file, &compiled.path)?;
        finish(text, &path)?;
        if let Some(old) = old.filter(|old| old.sha256 != record.sha256) {
            self.drop_unused(&old.sha256)?;
        }
        Ok(Put::Stored)
    }

    /// Removes a program. False: there is none of that name.
    pub(super) fn remove(&self, tenant: &str, name: &ProgramName) -> Result<bool, StoreError> {
        let _lock = self.lock()?;
        let path = self.record_path(tenant, name);
        let Some(record) = read_record(&path)? else {
            return Ok(false);
        };
        remove(&path)?;
        self.drop_unused(&record.sha256)?;
        Ok(true)
    }

    /// A component. `None`: it is not there, or not what its name says.
    pub(super) fn component(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.component_path(digest);
        match std::fs::read(&path) {
            Ok(component) if Digest::of(&component) == *digest => Ok(Some(component)),
            Ok(_) => {
                tracing::error!(path = %path.display(), "this is not the component that was stored");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// What was compiled of a component. `None`: nothing by that compiler, or somebody else has
    /// written it.
    pub(super) fn compiled(
        &self,
        digest: &Digest,
        fingerprint: &Fingerprint,
    ) -> Result<Option<Image>, StoreError> {
        let path = self.compiled_path(digest, fingerprint);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io_error("open", &path))?,
        };
        let mut code = self.code(digest, fingerprint);
        let mut read = || {
            let mut said = [0; KEY];
            match file.read_exact(&mut said) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            }
            // What is checked is the copy that is used.
            let mut draft = Draft::new()?;
            let mut chunk = vec![0; 64 << 10];
            loop {
                match file.read(&mut chunk)? {
                    0 => break,
                    n => {
                        code.update(&chunk[..n]);
                        draft.write(&chunk[..n])?;
                    }
                }
            }
            // This comparison tells nothing by its time.
            let is_ours = code.clone().verify_slice(&said).is_ok();
            is_ours.then(|| draft.seal()).transpose()
        };
        let image = read().map_err(io_error("read", &path))?;
        if image.is_none() {
            tracing::warn!(path = %path.display(), "not compiled here, or not whole: it is compiled again");
        }
        Ok(image)
    }

    /// Keeps what was compiled of a component, if that is still there.
    pub(super) fn keep(&self, digest: &Digest, compiled: &Compiled) -> Result<(), StoreError> {
        let signed = self.sign(digest, compiled)?;
        let _lock = self.lock()?;
        match self.component_path(digest).exists() {
            true => finish(signed.file, &signed.path),
            false => Ok(()),
        }
    }

    /// Writes the code and what was compiled, ready to be put in its place.
    fn sign(&self, digest: &Digest, compiled: &Compiled) -> Result<Signed, StoreError> {
        let path = self.compiled_path(digest, &compiled.fingerprint);
        let mut code = self.code(digest, &compiled.fingerprint);
        let read = compiled.image.read(|part| {
            code.update(part);
            Ok(())
        });
        read.map_err(io_error("write", &path))?;
        let code = code.finalize().into_bytes();
        let file = self.unfinished("compiled", |file| {
            file.write_all(&code)?;
            compiled.image.read(|part| file.write_all(part))
        })?;
        Ok(Signed { file, path })
    }

    /// The code of what was compiled, which is still to be added.
    fn code(&self, digest: &Digest, fingerprint: &Fingerprint) -> Hmac<Sha256> {
        let mut code = self.code.clone();
        code.update(&digest.0);
        // Or else its end could pass for the beginning of what was compiled.
        code.update(&(fingerprint.as_str().len() as u64).to_le_bytes());
        code.update(fingerprint.as_str().as_bytes());
        code
    }

    /// Removes a component and what was compiled of it, if no record names it. The lock is held.
    fn drop_unused(&self, digest: &Digest) -> Result<(), StoreError> {
        for tenant in entries(&self.dir.join("tenants"))? {
            if read_records(&tenant)?
                .iter()
                .any(|record| record.sha256 == *digest)
            {
                return Ok(());
            }
        }
        let hex = digest.hex();
        for folder in ["components", "compiled"] {
            for path in entries(&self.dir.join(folder))? {
                if file_name(&path).starts_with(&hex) || is_abandoned(&path) {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until nobody else changes anything; we alone may until the lock is dropped.
    fn lock(&self) -> Result<Flock<File>, StoreError> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new()
            .mode(0o600)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| io_error("lock", &path)(error.into()))
    }

    fn unfinished(
        &self,
        folder: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<NamedTempFile, StoreError> {
        unfinished(&self.dir.join(folder), write)
    }

    fn tenant_folder(&self, tenant: &str) -> PathBuf {
        let name = utf8_percent_encode(tenant, NON_ALPHANUMERIC).to_string();
        self.dir.join("tenants").join(name)
    }

    fn record_path(&self, tenant: &str, name: &ProgramName) -> PathBuf {
        self.tenant_folder(tenant).join(format!("{name}.json"))
    }

    fn component_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}.wasm", digest.hex());
        self.dir.join("components").join(name)
    }

    fn compiled_path(&self, digest: &Digest, fingerprint: &Fingerprint) -> PathBuf {
        let name = format!("{}-{}", digest.hex(), fingerprint.as_str());
        self.dir.join("compiled").join(name)
    }
}

/// What was compiled, behind its code, and where it is to be.
struct Signed {
    file: NamedTempFile,
    path: PathBuf,
}

/// The key of a folder. Of several who make one at once, one makes it for all.
fn read_or_make_key(dir: &Path) -> Result<[u8; KEY], StoreError> {
    let path = dir.join("key");
    if !path.exists() {
        let mut key = [0; KEY];
        getrandom::fill(&mut key).map_err(|e| io_error("make", &path)(e.into()))?;
        let file = unfinished(dir, |file| file.write_all(&key))?;
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", &path)(error.error));
            }
            _ => sync_folder(&path)?,
        }
    }
    let key = std::fs::read(&path).map_err(io_error("read", &path))?;
    key.try_into().map_err(|_| {
        let what = format!("a key has {KEY} bytes; remove it, and all is compiled again");
        io_error("use", &path)(io::Error::other(what))
    })
}

fn read_record(path: &Path) -> Result<Option<ProgramRecord>, StoreError> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(io_error("read", path))?,
    };
    let record = serde_json::from_slice(&text);
    record
        .map(Some)
        .map_err(|e| io_error("read", path)(e.into()))
}

/// All records in a tenant's folder.
fn read_records(folder: &Path) -> Result<Vec<ProgramRecord>, StoreError> {
    let paths = entries(folder)?.into_iter();
    let records = paths.filter(|path| !file_name(path).starts_with('.'));
    // One that is just being removed is none.
    records
        .filter_map(|path| read_record(&path).transpose())
        .collect()
}

/// What is in a folder, in no order; nothing, if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(io_error("read", folder)),
    }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Whether somebody who wrote this file was killed over it.
fn is_abandoned(path: &Path) -> bool {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = written.map(|written| SystemTime::now().duration_since(written));
    file_name(path).starts_with(UNFINISHED)
        && age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED))
}

/// Makes a folder that is ours alone, unless it is there.
fn make_folder(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("make", path))
}

/// Writes a file that is to be put in its place in that folder. Nobody else may read it.
fn unfinished(
    folder: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<NamedTempFile, StoreError> {
    let written = || {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(folder)?;
        write(file.as_file_mut())?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    written().map_err(io_error("write a file in", folder))
}

/// Puts a file in its place.
fn finish(file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
    file.persist(path)
        .map_err(|e| io_error("write", path)(e.error))?;
    sync_folder(path)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(io_error("remove", path)),
    }
}

/// Sees that what was put in its place is there after a power cut too.
fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(path);
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(io_error("write", folder))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
