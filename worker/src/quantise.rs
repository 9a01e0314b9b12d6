//! Model files in another format: GGUF or a Hugging Face folder in, GGUF out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use penstock_engine::weights::{self, Draft, Entry, Folder, Format, Weights};
use serde::Serialize;

use crate::tokenizer;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quantised {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Elements in each format.
    pub elements: BTreeMap<String, u64>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such format.
    #[error("no format {found:?}; there are {}", known())]
    Format {
        /// What was asked for.
        found: String,
    },
    /// The target is there. Models that are served must not change under their readers.
    #[error("{} is there already: remove it, or name another file", .0.display())]
    Exists(PathBuf),
    /// The source or the target.
    #[error("{}: {source}", path.display())]
    Weights {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: weights::Error,
    },
    /// The source's tokenizer.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: tokenizer::Error,
    },
    /// The file cannot be put in its place.
    #[error("cannot write {}: {source}", path.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn known() -> String {
    let written = Format::ALL.into_iter().filter(|format| *format != Format::Q8K).map(|format| format.to_string());
    written.collect::<Vec<_>>().join(", ")
}

/// Writes the model at `source` to `out` with its matrices in the format named `to`. The file appears whole or not at all.
pub fn quantise(source: &Path, out: &Path, to: &str) -> Result<Quantised, Error> {
    let format = Format::by_name(to).ok_or_else(|| Error::Format { found: to.to_owned() })?;
    if out.exists() {
        return Err(Error::Exists(out.to_owned()));
    }
    let failed = |source_error| Error::Weights { path: source.to_owned(), source: source_error };
    if source.is_dir() {
        let folder = Folder::open(source).map_err(failed)?;
        let mut draft = folder.draft().map_err(failed)?;
        let vocab_size = folder.vocab_size().map_err(failed)?;
        let entries = tokenizer::metadata_of(source, vocab_size)
            .map_err(|error| Error::Tokenizer { path: source.to_owned(), source: error })?;
        if let Some(name) = source.file_name().and_then(|name| name.to_str()) {
            draft.set("general.name", &Entry::Text(name.to_owned()));
        }
        entries.iter().for_each(|(key, value)| draft.set(key, value));
        return write(draft, out, format);
    }
    let weights = Weights::open(source).map_err(failed)?;
    write(Draft::of(&weights), out, format)
}

fn write(draft: Draft<'_>, out: &Path, to: Format) -> Result<Quantised, Error> {
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = draft.write(&partial, to);
    let placed = written.map_err(|source| Error::Weights { path: out.to_owned(), source }).and_then(|written| {
        std::fs::rename(&partial, out).map_err(|source| Error::Place { path: out.to_owned(), source })?;
        Ok(written)
    });
    if placed.is_err() {
        // What failed to be written is of no use; that it cannot be removed changes nothing about the failure.
        let _ = std::fs::remove_file(&partial);
    }
    let written = placed?;
    let elements = written.elements.into_iter().map(|(format, count)| (format.to_string(), count)).collect();
    Ok(Quantised { path: out.to_owned(), size: written.bytes, elements })
}
