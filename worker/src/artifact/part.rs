//! A file on its way into the cache: hashed while it is written, invisible until it is whole, gone when dropped.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tempfile::{Builder, NamedTempFile, TempDir};
use tokio_util::sync::CancellationToken;

use super::{Digest, Error, Needed, Progress};

/// Takes a pull's progress; called from any thread.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a part is written with: where, and who is told.
#[derive(Clone)]
pub(super) struct Job {
    /// The model's name.
    pub(super) name: String,
    /// The cache's folder.
    pub(super) directory: PathBuf,
    /// Whom to tell.
    pub(super) report: Report,
    /// Set once nobody waits any more.
    pub(super) cancelled: CancellationToken,
}

/// A temporary file of the cache. Everything here blocks.
pub(super) struct Part {
    file: NamedTempFile,
    hasher: Sha256,
    written: u64,
    job: Job,
}

impl Part {
    /// An empty file.
    pub(super) fn create(job: Job) -> Result<Self, Error> {
        let file = job.temporary().map_err(|error| job.failed(&job.directory, None, error))?;
        Ok(Self { file, hasher: Sha256::new(), written: 0, job })
    }

    /// Appends; `total` is the file's final size, where it is known.
    pub(super) fn write(&mut self, bytes: &[u8], total: Option<u64>) -> Result<(), Error> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.job.failed(self.file.path(), total, error))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        (self.job.report)(Progress::Advanced { written: self.written });
        Ok(())
    }

    /// Appends everything that `reader`, a view of the file at `from`, gives.
    pub(super) fn copy(&mut self, mut reader: impl Read, from: &Path, total: u64) -> Result<(), Error> {
        (self.job.report)(Progress::Started { total: Some(total) });
        let mut buffer = vec![0; 1 << 20];
        loop {
            if self.job.cancelled.is_cancelled() {
                return Err(Error::io(from)(io::ErrorKind::Interrupted.into()));
            }
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.write(&buffer[..read], Some(total))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(from)(error)),
            }
        }
    }

    /// Checks the digest, syncs, and renames it to `path`; the folder is synced too. Returns digest and size.
    pub(super) fn persist(self, path: &Path, from: &str, expected: Option<Digest>) -> Result<(Digest, u64), Error> {
        let Self { file, hasher, written, job } = self;
        let found = Digest::of(hasher);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(Error::Digest { from: from.to_owned(), expected, found });
        }
        persist(file, path, &job)?;
        Ok((found, written))
    }
}

impl Job {
    /// Removes what an earlier pull of the model left behind when it was killed. The caller holds the model's lock.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        let prefix = self.prefix();
        for entry in fs::read_dir(&self.directory).map_err(Error::io(&self.directory))?.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            if name.to_string_lossy().starts_with(&prefix) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                match removed {
                    // The thread of a pull that was dropped just now may remove it at the same time.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(path)(error)),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// An empty folder beside the models, gone when dropped.
    pub(super) fn folder(&self) -> Result<TempDir, Error> {
        Builder::new().prefix(&self.prefix()).tempdir_in(&self.directory).map_err(Error::io(&self.directory))
    }

    fn temporary(&self) -> io::Result<NamedTempFile> {
        Builder::new().prefix(&self.prefix()).suffix(".part").tempfile_in(&self.directory)
    }

    /// '=' is in no model's name, so that no other model's files begin like this.
    fn prefix(&self) -> String {
        format!(".{}=", self.name)
    }

    /// An error of the file at `path`, of which `needed` bytes were to be written.
    pub(super) fn failed(&self, path: &Path, needed: Option<u64>, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::DiskFull { name: self.name.clone(), directory: self.directory.clone(), needed: Needed(needed) }
            }
            _ => Error::io(path)(error),
        }
    }
}

/// Writes a small file whole or not at all.
pub(super) fn write_whole(job: &Job, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = job.temporary().map_err(|error| job.failed(path, None, error))?;
    file.write_all(bytes).map_err(|error| job.failed(path, Some(bytes.len() as u64), error))?;
    persist(file, path, job)
}

fn persist(file: NamedTempFile, path: &Path, job: &Job) -> Result<(), Error> {
    file.as_file().sync_all().map_err(|error| job.failed(file.path(), None, error))?;
    share(file.as_file()).map_err(Error::io(file.path()))?;
    file.persist(path).map_err(|error| Error::io(path)(error.error))?;
    // The rename itself must survive a crash before anybody relies on it.
    File::open(&job.directory).and_then(|directory| directory.sync_all()).map_err(Error::io(&job.directory))
}

/// Temporary files begin as their owner's alone; models are for everybody on the machine.
#[cfg(unix)]
fn share(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share(_file: &File) -> io::Result<()> {
    Ok(())
}
