//! A version that is not in the store yet. Whoever drafts one can look at it, and at what it would change, before it is
//! committed; it is refused then if another version came first.

use std::time::Duration;

use penstock_proto::time::unix_now;

use super::history::{self, Origin, Stored};
use super::issued::{self, Edit, ISSUED};
use super::{At, Catalog, Diff, Error, Invalid, Number, Problem, Source, read};
use crate::store::{Entry, Store};

/// A version in the making.
#[derive(Debug)]
pub struct Draft {
    newest: Option<(Entry, Stored)>,
    before: Catalog,
    after: Catalog,
    /// The version that its files are of, where it takes them from one.
    files: Option<Number>,
    restored: Option<Number>,
}

impl Draft {
    /// Other files in the place of those that there are; what was issued stays.
    ///
    /// # Errors
    ///
    /// [`Error::Given`] where they do not make a catalogue.
    pub async fn of_files(store: &dyn Store, files: Vec<Source>) -> Result<Self, Error> {
        let (newest, before) = newest(store).await?;
        check_names(&files).map_err(Error::Given)?;
        let said = read::read(files.clone()).map_err(Error::Given)?;
        let after = Catalog::read(issued::beside(files, &said, &before)).map_err(Error::Given)?;
        Ok(Self { newest, before, after, files: None, restored: None })
    }

    /// The same files, and a change of what is issued.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where it cannot be made.
    pub async fn of_edit(store: &dyn Store, edit: &Edit, now: Duration) -> Result<Self, Error> {
        let (newest, before) = newest(store).await?;
        let after = Catalog::read(issued::edit(&before, edit, now)?).map_err(Error::Given)?;
        let files = newest.as_ref().map(|(_, stored)| stored.files());
        Ok(Self { newest, before, after, files, restored: None })
    }

    /// The files as they were before they last changed; what was issued stays. Done again it goes further back.
    ///
    /// # Errors
    ///
    /// [`Error::NoEarlier`] where they never changed, [`Error::NoVersion`] where history does not reach that far,
    /// [`Error::Given`] where what was valid then is no longer.
    pub async fn of_earlier(store: &dyn Store) -> Result<Self, Error> {
        let (newest, before) = newest(store).await?;
        let mut number = newest.as_ref().ok_or(Error::NoEarlier)?.1.files();
        let (earlier, files) = loop {
            number = number.before().ok_or(Error::NoEarlier)?;
            let earlier = history::version(store, number).await?.ok_or(Error::NoVersion(number))?;
            let files: Vec<Source> = earlier.sources.iter().filter(|it| it.file != ISSUED).cloned().collect();
            if !files.iter().eq(before.files()) {
                break (earlier, files);
            }
        };
        let said = read::read(files.clone()).map_err(Error::Given)?;
        let after = Catalog::read(issued::beside(files, &said, &before)).map_err(Error::Given)?;
        Ok(Self { newest, before, after, files: Some(earlier.files()), restored: Some(earlier.number) })
    }

    /// The version that it would follow; None where it is the first.
    pub fn over(&self) -> Option<Number> {
        self.newest.as_ref().map(|(_, stored)| stored.number)
    }

    /// What is in force until then.
    pub fn before(&self) -> &Catalog {
        &self.before
    }

    /// What would be in force.
    pub fn after(&self) -> &Catalog {
        &self.after
    }

    /// The version whose files it brings back.
    pub fn restored(&self) -> Option<Number> {
        self.restored
    }

    /// Whether it is written just as what is in force.
    pub fn changes_nothing(&self) -> bool {
        self.newest.is_some() && self.before == self.after
    }

    /// What it would change.
    pub fn diff(&self) -> Diff {
        self.before.diff(&self.after)
    }

    /// Makes it the newest version, as a whole or not at all, in the name of `by`.
    ///
    /// # Errors
    ///
    /// [`Error::Raced`] where another one came first. After a retryable [`Error::Store`] it is open whether it was
    /// applied.
    pub async fn commit(self, store: &dyn Store, by: &str) -> Result<Number, Error> {
        let origin = Origin { by: by.to_owned(), at: unix_now(), restored: self.restored };
        history::commit(store, self.newest.as_ref(), (self.after.sources(), self.files), origin).await
    }
}

async fn newest(store: &dyn Store) -> Result<(Option<(Entry, Stored)>, Catalog), Error> {
    let newest = history::current(store).await?;
    let catalog = match &newest {
        Some((_, stored)) => Catalog::read(stored.sources.clone())?,
        None => Catalog::default(),
    };
    Ok((newest, catalog))
}

/// Errors name files, so each has a name of its own, and none that of what is issued.
fn check_names(files: &[Source]) -> Result<(), Invalid> {
    let mut problems = Vec::new();
    for (number, source) in files.iter().enumerate() {
        let at = || At { file: source.file.as_str().into(), line: 0 };
        if source.file == ISSUED {
            problems.push(Problem { at: at(), why: "what the command line issues has this name; give another".into() });
        } else if files[..number].iter().any(|other| other.file == source.file) {
            problems.push(Problem { at: at(), why: "this file is given twice".into() });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Invalid { problems }) }
}
