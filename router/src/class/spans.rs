//! Where in a text detectors find something, while the text is still coming: which of its bytes pass, which are dropped,
//! and which are held because they may be the beginning of a match.
//!
//! Every detector is a rule about a few hundred bytes: whether a match begins at a place depends on little before it and
//! on what it is made of. So the verdict on a text does not depend on the pieces that it comes in. Matches that overlap
//! are one, under the name of the first. A match that is not certain within [`HOLD`] bytes of its beginning is none.

mod number;
mod pattern;
mod window;
mod word;

use std::io;
use std::path::Path;
use std::sync::Arc;

use penstock_cluster::catalog::{Catalog, Name};

use super::Error;
use super::custom::entries;
use super::numbers::{Found, Kinds};
use super::secret::Secrets;
use pattern::{Patterns, Words};
use window::Window;
use word::Tail;

/// Bytes of a text that may be held.
pub const HOLD: usize = 256;
/// Bytes before a place that a rule may look at.
const CONTEXT: usize = 96;
/// Bytes behind the context that are kept for a while: they are not moved with every piece.
const SLACK: usize = 160;

/// Some detectors of a catalogue, compiled to find the places of their matches.
#[derive(Debug)]
pub struct Finder {
    /// In the order of [`Found::ALL`], then patterns, then dictionaries.
    labels: Vec<Name>,
    kinds: Kinds,
    secrets: Option<Secrets>,
    patterns: Option<Patterns>,
    words: Words,
}

impl Finder {
    /// Compiles the detectors of these names; `read` reads a dictionary.
    ///
    /// # Errors
    ///
    /// [`Error`]: what was to be searched must then not pass unseen.
    pub fn compile<'n>(
        catalog: &Catalog,
        names: impl IntoIterator<Item = &'n Name>,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, Error> {
        let mut labels: Vec<Name> = Found::ALL.iter().map(|found| super::built_in(catalog, *found).name).collect();
        let (mut kinds, mut patterns, mut dictionaries) = (Kinds::default(), Vec::new(), Vec::new());
        for name in names {
            let built_in = Found::ALL.into_iter().find(|found| found.as_str() == name.as_str());
            let detector = catalog.detectors.get(name);
            match (built_in, detector) {
                (Some(found), _) => kinds.add(found),
                (None, Some(detector)) if detector.pattern.is_some() => {
                    patterns
                        .extend(detector.pattern.iter().map(|it| (name.clone(), it.regex().clone(), detector.check)));
                }
                (None, Some(detector)) => {
                    let path = detector.dictionary.as_deref().unwrap_or(Path::new(""));
                    let at = || detector.at.clone();
                    let text =
                        read(path).map_err(|source| Error::Dictionary { at: at(), path: path.into(), source })?;
                    dictionaries.push((name.clone(), entries(&text)));
                }
                (None, None) => return Err(Error::Compile { reason: format!("there is no detector {name}") }),
            }
        }
        let compile = |reason: String| Error::Compile { reason };
        let first = labels.len();
        labels.extend(patterns.iter().map(|(name, ..)| name.clone()));
        let patterns: Vec<_> = patterns.into_iter().map(|(_, regex, check)| (regex, check)).collect();
        let patterns =
            if patterns.is_empty() { None } else { Some(Patterns::compile(patterns, first).map_err(compile)?) };
        let first = labels.len();
        labels.extend(dictionaries.iter().map(|(name, _)| name.clone()));
        let words =
            Words::compile(dictionaries.into_iter().map(|(_, words)| words).collect(), first).map_err(compile)?;
        let secrets = kinds.has(Found::Secret).then(Secrets::compile).transpose().map_err(compile)?;
        Ok(Self { labels, kinds, secrets, patterns, words })
    }

    /// The name of the detector of a mark.
    pub fn name(&self, label: usize) -> &Name {
        &self.labels[label]
    }

    /// Finds all matches from a place on, as far as they are certain, and where the first that is not yet so may begin.
    fn scan(&self, view: &View<'_>, cache: &mut pattern::Cache, out: &mut Vec<Match>) -> usize {
        let mut hold = number::scan(view, self.kinds, out);
        if self.kinds.has(Found::Email) {
            hold = hold.min(word::emails(view, out));
        }
        if let Some(secrets) = &self.secrets {
            hold = hold.min(word::secrets(secrets, view, out));
        }
        if let Some(patterns) = &self.patterns {
            hold = hold.min(patterns.scan(view, cache, out));
        }
        hold.min(self.words.scan(view, out))
    }
}

/// A text as rules look at it.
struct View<'a> {
    /// In NFKC.
    text: &'a str,
    /// Matches that begin before are known already.
    from: usize,
    /// Whether more of it may come.
    more: bool,
}

impl View<'_> {
    /// A place, or the next one that no character is around.
    fn ceil(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at += 1;
        }
        at
    }

    /// Where a rule begins to read that looks so far back.
    fn back(&self, reach: usize) -> usize {
        let mut at = self.from.saturating_sub(reach);
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// A match, by its places in the window.
#[derive(Debug)]
struct Match {
    start: usize,
    end: usize,
    /// How much of the text makes it certain.
    known: usize,
    label: usize,
    /// What goes on behind it, however long.
    tail: Option<Tail>,
}

/// What becomes of the next bytes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// So many pass.
    Pass(usize),
    /// A match begins; the label of its detector.
    Mark(usize),
    /// So many are dropped.
    Drop(usize),
}

/// A text that is searched as it comes.
#[derive(Debug, Clone)]
pub struct Search {
    finder: Arc<Finder>,
    window: Window,
    cache: pattern::Cache,
    /// The place in the window from which on matches are not known yet.
    from: usize,
    /// What goes on at the end of the window.
    tails: Vec<Tail>,
    /// The bytes up to here are a match's, or out already.
    covered: usize,
    /// The bytes up to here have their verdict.
    told: usize,
}

impl Search {
    /// At the beginning of a text.
    pub fn new(finder: &Arc<Finder>) -> Self {
        Self {
            finder: Arc::clone(finder),
            window: Window::default(),
            cache: pattern::Cache::default(),
            from: 0,
            tails: Vec::new(),
            covered: 0,
            told: 0,
        }
    }

    /// At the beginning of a text that stands behind another one, which has its verdict.
    pub fn behind(finder: &Arc<Finder>, before: &str) -> Self {
        let mut search = Self::new(finder);
        search.window.push(before);
        search.window.settle();
        search.from = search.window.text().len();
        (search.covered, search.told) = (search.window.total(), search.window.total());
        search
    }

    /// Takes the next piece, and tells what becomes of what is certain by now.
    pub fn push(&mut self, piece: &str, cuts: &mut Vec<Cut>) {
        let before = self.window.text().len();
        self.window.push(piece);
        self.judge(before, true, cuts);
    }

    /// The text has ended: all that is held gets its verdict.
    pub fn end(&mut self, cuts: &mut Vec<Cut>) {
        let before = self.window.text().len();
        self.window.settle();
        self.judge(before, false, cuts);
    }

    /// All that is held gets its verdict as if the text had ended. What may come all the same is searched as if nothing
    /// was out yet: the rest of a match whose beginning is out is dropped.
    pub fn cut(&mut self, cuts: &mut Vec<Cut>) {
        if self.held() == 0 {
            return;
        }
        let mut ended = self.clone();
        ended.end(cuts);
        (self.told, self.covered) = (ended.told, ended.covered.max(ended.told));
    }

    /// Its detectors fail from now on.
    #[cfg(test)]
    pub(crate) fn kill(&mut self) {
        self.from = usize::MAX;
    }

    /// Bytes that have no verdict yet.
    pub fn held(&self) -> usize {
        self.window.total() - self.told
    }

    fn judge(&mut self, before: usize, more: bool, cuts: &mut Vec<Cut>) {
        let finder = Arc::clone(&self.finder);
        self.follow_tails(before);
        let view = View { text: self.window.text(), from: self.from, more };
        let mut found = Vec::new();
        let hold = finder.scan(&view, &mut self.cache, &mut found);
        // Nothing is held beyond the bound, and nothing is found that would have had to be.
        let until = self.window.at_least(hold.max(self.from), HOLD);
        found.retain(|it| it.start < until && self.window.end(it.known) - self.window.start(it.start) <= HOLD);
        found.sort_unstable_by_key(|it| (it.start, it.label, it.end));
        for it in found {
            let (start, end) = (self.window.start(it.start), self.window.end(it.end));
            if start >= self.covered {
                self.tell(start, cuts);
                cuts.push(Cut::Mark(it.label));
            }
            self.covered = self.covered.max(end);
            if let Some(tail) = it.tail {
                self.tails.push(tail);
                self.follow(self.tails.len() - 1, it.end);
            }
        }
        self.tails.retain(Tail::is_open);
        self.from = until;
        self.tell(self.window.start(until).max(self.covered.min(self.window.end(self.window.text().len()))), cuts);
        self.trim();
    }

    fn follow_tails(&mut self, from: usize) {
        (0..self.tails.len()).for_each(|at| self.follow(at, from));
        self.tails.retain(Tail::is_open);
    }

    fn follow(&mut self, tail: usize, from: usize) {
        let end = from + self.tails[tail].advance(&self.window.text().as_bytes()[from..]);
        if end > from {
            self.covered = self.covered.max(self.window.end(end));
        }
    }

    /// Gives the bytes up to a place their verdict.
    fn tell(&mut self, until: usize, cuts: &mut Vec<Cut>) {
        let dropped = self.covered.min(until).saturating_sub(self.told);
        if dropped > 0 {
            cuts.push(Cut::Drop(dropped));
            self.told += dropped;
        }
        if until > self.told {
            cuts.push(Cut::Pass(until - self.told));
            self.told = until;
        }
    }

    /// Forgets what no rule looks at any more.
    fn trim(&mut self) {
        if self.from > CONTEXT + SLACK {
            let gone = self.window.forget(self.from - CONTEXT);
            self.from -= gone;
        }
    }
}

#[cfg(test)]
mod tests;
