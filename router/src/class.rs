//! The data class of a request: how it rises, and the detectors that raise it.
//!
//! Detectors look for built-in things (cards, accounts, ids, phones, secrets) and for the catalogue's own patterns and
//! dictionaries, in a text as Unicode's NFKC has it, and once more with the separators between digits removed. What
//! they say is which detector found something and where, never what it found. Where a request may then go is decided
//! elsewhere.

mod checksum;
mod custom;
mod digits;
mod email;
mod escapes;
mod fold;
mod iban;
mod numbers;
mod secret;
mod sessions;
mod spans;
mod strings;

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use penstock_cluster::catalog::{At, BUILT_IN_DETECTORS, Catalog, Name};
use penstock_proto::DataClass;
use serde::{Serialize, Serializer};

use custom::{Dictionaries, Patterns};
use numbers::Found;
use secret::Secrets;

pub use sessions::{Error as SessionsError, Sessions};
pub use spans::{Cut, Finder, HOLD, Search};
pub(crate) use strings::{Unreadable, body, request, text};

/// Hashes texts so that nobody outside can make two of the same hash.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);
/// Findings of one request that are kept; the class counts all.
const FINDINGS_LIMIT: usize = 32;

/// The class of a request and what raised it. It only rises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Classed {
    class: DataClass,
    raised_by: Vec<Raised>,
}

impl Classed {
    /// The class that a tenant's requests have at least.
    pub fn of_tenant(class: DataClass) -> Self {
        Self { class, raised_by: vec![Raised { by: Raiser::Tenant, to: class }] }
    }

    /// Raises the class; a lower one changes nothing.
    pub fn raise(&mut self, by: Raiser, to: DataClass) {
        if to > self.class {
            self.class = to;
            self.raised_by.clear();
        }
        if to == self.class && self.raised_by.len() < FINDINGS_LIMIT {
            self.raised_by.push(Raised { by, to });
        }
    }

    /// Raises the class by what detectors found.
    pub fn raise_by(&mut self, findings: &Findings) {
        for finding in &findings.found {
            let by = Raiser::Detector { name: finding.detector.clone(), place: finding.place.clone() };
            self.raise(by, finding.class);
        }
    }

    /// The class.
    pub fn class(&self) -> DataClass {
        self.class
    }

    /// What it has its class from: everything that asked for as much.
    pub fn raised_by(&self) -> &[Raised] {
        &self.raised_by
    }
}

/// A class and what asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Raised {
    /// What asked.
    pub by: Raiser,
    /// For which class.
    pub to: DataClass,
}

/// What asks for a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raiser {
    /// The tenant's least class.
    Tenant,
    /// The header `x-penstock-class`.
    Header,
    /// The request's task.
    Task,
    /// The operator's record of the session.
    Session,
    /// Something that no detector can look into: ids of an unknown vocabulary.
    Opaque {
        /// Where it stands.
        place: &'static str,
    },
    /// A detector, and the string that it found something in.
    Detector {
        /// The detector.
        name: Name,
        /// The string: `messages[2].content`.
        place: String,
    },
}

impl fmt::Display for Raiser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant => f.write_str("tenant"),
            Self::Header => f.write_str("header"),
            Self::Task => f.write_str("task"),
            Self::Session => f.write_str("session"),
            Self::Opaque { place } => write!(f, "{place}, which cannot be read"),
            Self::Detector { name, place } => write!(f, "detector {name} in {place}"),
        }
    }
}

impl Serialize for Raiser {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What detectors found in the strings of a request: at most one finding for each detector and string, and no more of
/// them than a record can hold, but always one of the highest class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    found: Vec<Finding>,
}

impl Findings {
    /// The highest class; None where nothing was found.
    pub fn class(&self) -> Option<DataClass> {
        self.found.iter().map(|finding| finding.class).max()
    }

    /// What was found.
    pub fn found(&self) -> &[Finding] {
        &self.found
    }

    /// Whether the detector found something.
    pub fn has(&self, detector: &str) -> bool {
        self.found.iter().any(|finding| finding.detector.as_str() == detector)
    }

    fn add(&mut self, finding: Finding) {
        if self.found.len() < FINDINGS_LIMIT {
            self.found.push(finding);
        } else if self.class() < Some(finding.class) {
            self.found.pop();
            self.found.push(finding);
        }
    }
}

/// A detector that found something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The detector.
    pub detector: Name,
    /// What it raises a request to.
    pub class: DataClass,
    /// The string that it found something in; never what it found.
    pub place: String,
}

/// Why a catalogue's detectors cannot be used. Requests are refused rather than passed unseen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dictionary cannot be read.
    #[error("{at}: the dictionary {} cannot be read: {source}", path.display())]
    Dictionary {
        /// The detector's place in the catalogue.
        at: At,
        /// The dictionary.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A dictionary has no entries.
    #[error("{at}: the dictionary {} has no entries", path.display())]
    Empty {
        /// The detector's place in the catalogue.
        at: At,
        /// The dictionary.
        path: PathBuf,
    },
    /// Together they are too large.
    #[error("the detectors cannot be compiled: {reason}")]
    Compile {
        /// What the matcher says.
        reason: String,
    },
}

/// A detector as findings name it.
#[derive(Debug, Clone)]
struct Label {
    name: Name,
    class: DataClass,
}

/// The detectors of one catalogue, compiled.
#[derive(Debug)]
pub struct Detectors {
    /// In the order of [`Found::ALL`], then patterns, then dictionaries.
    labels: Vec<Label>,
    secrets: Secrets,
    patterns: Patterns,
    dictionaries: Dictionaries,
}

impl Detectors {
    /// Compiles a catalogue's detectors; `read` reads a dictionary.
    ///
    /// # Errors
    ///
    /// [`Error`]: a catalogue whose detectors cannot be compiled must not come into force.
    pub fn compile(catalog: &Catalog, read: impl Fn(&Path) -> io::Result<String>) -> Result<Self, Error> {
        let mut labels: Vec<Label> = Found::ALL.iter().map(|found| built_in(catalog, *found)).collect();
        let mut patterns = Vec::new();
        let mut dictionaries = Vec::new();
        let mut words = Vec::new();
        for (name, detector) in &catalog.detectors {
            let label = Label { name: name.clone(), class: detector.class };
            if let Some(pattern) = &detector.pattern {
                labels.push(label);
                patterns.push((pattern.regex().clone(), detector.check));
            } else if let Some(path) = &detector.dictionary {
                let at = || detector.at.clone();
                let text = read(path).map_err(|source| Error::Dictionary { at: at(), path: path.clone(), source })?;
                let entries = custom::entries(&text);
                if entries.is_empty() {
                    return Err(Error::Empty { at: at(), path: path.clone() });
                }
                dictionaries.push(label);
                words.push(entries);
            }
        }
        let compile = |reason: String| Error::Compile { reason };
        let first_dictionary = labels.len();
        labels.extend(dictionaries);
        Ok(Self {
            labels,
            secrets: Secrets::compile().map_err(compile)?,
            patterns: Patterns::compile(patterns, Found::ALL.len()).map_err(compile)?,
            dictionaries: Dictionaries::compile(words, first_dictionary).map_err(compile)?,
        })
    }

    /// Looks through one text. The place of what it finds is empty.
    pub fn scan(&self, text: &str) -> Findings {
        self.scan_all([("", text)])
    }

    /// Looks through the strings of a request, each with its place.
    pub fn scan_all<'a, P: fmt::Display>(&self, strings: impl IntoIterator<Item = (P, &'a str)>) -> Findings {
        let mut scan = self.begin();
        strings.into_iter().for_each(|(place, text)| scan.look(place, text));
        scan.findings()
    }

    /// Begins to look through a request, string by string.
    pub(crate) fn begin(&self) -> Scan<'_> {
        let hits = Hits { hit: vec![false; self.labels.len()] };
        Scan { detectors: self, hits, seen: HashSet::new(), findings: Findings::default() }
    }

    fn search(&self, text: &str, hits: &mut Hits) {
        let text = fold::fold(text);
        let joined = digits::scan(&text, hits, !self.patterns.is_empty());
        email::scan(&text, hits);
        self.secrets.scan(&text, hits);
        self.patterns.scan(&text, &joined, hits);
        self.dictionaries.scan(&text, hits);
    }
}

/// A look through a request. What was seen once is not looked at again, wherever it stands.
#[derive(Debug)]
pub(crate) struct Scan<'d> {
    detectors: &'d Detectors,
    hits: Hits,
    /// Of the texts that were seen: hashes with a key of this process.
    seen: HashSet<u64>,
    findings: Findings,
}

impl Scan<'_> {
    /// Looks at one string.
    pub(crate) fn look(&mut self, place: impl fmt::Display, text: &str) {
        if text.is_empty() || !self.seen.insert(HASHES.hash_one(text)) {
            return;
        }
        self.detectors.search(text, &mut self.hits);
        for (index, hit) in self.hits.hit.iter_mut().enumerate().filter(|(_, hit)| **hit) {
            *hit = false;
            let Label { name, class } = &self.detectors.labels[index];
            self.findings.add(Finding { detector: name.clone(), class: *class, place: place.to_string() });
        }
    }

    /// What was found.
    pub(crate) fn findings(self) -> Findings {
        self.findings
    }
}

/// Which detectors found something in one text.
#[derive(Debug)]
struct Hits {
    hit: Vec<bool>,
}

impl Hits {
    fn add(&mut self, found: Found) {
        self.hit[found as usize] = true;
    }
}

fn built_in(catalog: &Catalog, found: Found) -> Label {
    let (name, class) = BUILT_IN_DETECTORS
        .iter()
        .find(|(name, _)| *name == found.as_str())
        .expect("every kind of number is one of the built-in detectors, as a test holds");
    let class = catalog.detectors.get(*name).map_or(*class, |detector| detector.class);
    Label { name: Name::new(name).expect("the names of built-in detectors are names"), class }
}

#[cfg(test)]
mod tests;
