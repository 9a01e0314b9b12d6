//! The one way by which a catalogue comes into force: drafted over the newest version, checked as a whole, compiled as this
//! router would, and stored.

use std::fmt::Write as _;
use std::sync::Arc;

use penstock_cluster::Store;
use penstock_cluster::catalog::{self, Catalog, Diff, Draft, Edit, Error, Number, Source};
use penstock_proto::ErrorCode;
use penstock_proto::time::unix_now;

use crate::config::Secrets;
use crate::request::Failure;
use crate::rulebook::Parts;

/// Bytes of problems that one answer tells: more would not fit into a head.
const TOLD: usize = 3000;

/// Changes the catalogue, for operators and at start.
#[derive(Debug, Clone)]
pub struct Publisher {
    store: Arc<dyn Store>,
    secrets: Secrets,
}

/// What is to be changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// The files, all of them.
    Files(Vec<Source>),
    /// What is issued beside them.
    Edit(Edit),
    /// The files, back to what they were before they last changed.
    Earlier,
}

/// On what terms it is changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// Checks, and changes nothing.
    pub dry_run: bool,
    /// Changes only where this is the newest version; `Some(None)` stands for "none yet".
    pub over: Option<Option<Number>>,
}

/// What was, or would be, changed.
#[derive(Debug)]
pub struct Published {
    /// The version that has it: the newest one where nothing was changed.
    pub version: Option<Number>,
    /// Whether it is a new version.
    pub changed: bool,
    /// What is allowed and hardly meant.
    pub warnings: Vec<String>,
    /// What it changes.
    pub diff: Diff,
    /// The version whose files were brought back.
    pub restored: Option<Number>,
    /// What is in force then.
    pub catalog: Catalog,
}

impl Publisher {
    /// Changes what is in `store`; a catalogue may name those secrets.
    pub fn new(store: Arc<dyn Store>, secrets: Secrets) -> Self {
        Self { store, secrets }
    }

    /// Makes a change in the name of `by`, as a whole or not at all. Where somebody else was quicker, and it is not
    /// bound to a version, it is made once more over what is there then.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::InvalidCatalogue`] with every problem, [`ErrorCode::Conflict`] where another version came first,
    /// [`ErrorCode::InvalidRequest`] for what cannot be done, [`ErrorCode::StaleState`] where the store does not answer:
    /// it is open then whether the change was made.
    pub async fn publish(&self, change: &Change, by: &str, terms: Terms) -> Result<Published, Failure> {
        match self.once(change, by, terms).await {
            Err(Refusal::Catalog(Error::Raced)) if terms.over.is_none() => self.once(change, by, terms).await,
            published => published,
        }
        .map_err(Failure::from)
    }

    async fn once(&self, change: &Change, by: &str, terms: Terms) -> Result<Published, Refusal> {
        let store = &*self.store;
        let draft = match change {
            Change::Files(files) => Draft::of_files(store, files.clone()).await?,
            Change::Edit(edit) => Draft::of_edit(store, edit, unix_now()).await?,
            Change::Earlier => Draft::of_earlier(store).await?,
        };
        if let Some(over) = terms.over
            && over != draft.over()
        {
            return Err(Refusal::Moved { newest: draft.over() });
        }
        self.compile(draft.after()).await?;
        let mut published = Published {
            version: draft.over(),
            changed: false,
            warnings: warnings(&draft),
            diff: draft.diff(),
            restored: draft.restored(),
            catalog: draft.after().clone(),
        };
        if !terms.dry_run && !draft.changes_nothing() {
            published.version = Some(draft.commit(store, by).await?);
            published.changed = true;
        }
        Ok(published)
    }

    /// Makes of it what a router would.
    async fn compile(&self, catalog: &Catalog) -> Result<(), Refusal> {
        let (catalog, secrets) = (catalog.clone(), self.secrets.clone());
        // Large dictionaries take a while.
        let faults = tokio::task::spawn_blocking(move || Parts::compile(&catalog, &secrets, None).faults()).await;
        match faults {
            Ok(faults) if faults.is_empty() => Ok(()),
            Ok(faults) => Err(Refusal::Unusable(faults)),
            Err(error) => Err(Refusal::Unusable(vec![format!("it cannot be compiled: {error}")])),
        }
    }
}

fn warnings(draft: &Draft) -> Vec<String> {
    let (before, after) = (draft.before(), draft.after());
    let keys = match (before.tenants.is_empty(), after.tenants.is_empty()) {
        (true, false) => Some("the catalogue has tenants now: from here on every request needs a key".to_owned()),
        (false, true) => Some("the catalogue has no tenants any more: no request needs a key".to_owned()),
        (true, true) | (false, false) => None,
    };
    after.warnings().iter().map(ToString::to_string).chain(keys).collect()
}

/// Why nothing was changed.
enum Refusal {
    Catalog(Error),
    /// This router could not use it: a line for each fault.
    Unusable(Vec<String>),
    /// It was to follow another version.
    Moved {
        newest: Option<Number>,
    },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Catalog(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Catalog(error) => failure(&error),
            Refusal::Unusable(faults) => invalid(&faults),
            Refusal::Moved { newest } => {
                let newest = newest
                    .map_or_else(|| "nothing was applied yet".to_owned(), |it| format!("the newest version is {it}"));
                Failure::new(ErrorCode::Conflict, format!("{newest}: look at it, and apply again"))
            }
        }
    }
}

/// What a caller is told where the catalogue cannot be changed or read.
pub(super) fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::Given(problems) => {
            let problems: Vec<String> = problems.problems.iter().map(catalog::Problem::to_string).collect();
            return invalid(&problems);
        }
        Error::Store(_) => ErrorCode::StaleState,
        Error::Raced => ErrorCode::Conflict,
        Error::TooLarge { .. } => ErrorCode::InvalidCatalogue,
        Error::NoEarlier | Error::NoVersion(_) | Error::Refused(_) => ErrorCode::InvalidRequest,
        Error::Invalid(_) | Error::Corrupt { .. } => ErrorCode::Internal,
    };
    Failure::new(code, error.to_string())
}

fn invalid(problems: &[String]) -> Failure {
    let mut message = "the catalogue is not valid:".to_owned();
    for (number, problem) in problems.iter().enumerate() {
        if number > 0 && message.len() + problem.len() > TOLD {
            let _ = write!(message, "\n{} more", problems.len() - number);
            break;
        }
        message.push('\n');
        message.extend(problem.chars().take(TOLD));
    }
    Failure::new(ErrorCode::InvalidCatalogue, message)
}
