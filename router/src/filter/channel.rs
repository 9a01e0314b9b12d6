//! One text of an answer on its way through the filter: what is said, or the arguments of a call.

use std::sync::Arc;

use penstock_cluster::catalog::FilterAction;

use super::Stopped;
use super::json::Json;
use super::vault::{Restore, Vault};
use crate::class::{Cut, Finder, Search};

/// A text under way: searched, and after that restored.
pub(super) struct Channel {
    search: Searched,
    restore: Restore,
    searched: String,
}

enum Searched {
    /// Nothing is looked for.
    Open,
    Text(Text),
    Json(Box<Json>),
}

impl Channel {
    /// Text that is searched.
    pub(super) fn text(finder: &Arc<Finder>, action: FilterAction, vault: &Arc<Vault>) -> Self {
        Self::new(Searched::Text(Text::new(finder, action)), Restore::text(vault))
    }

    /// JSON whose strings are searched as they are meant.
    pub(super) fn json(finder: &Arc<Finder>, action: FilterAction, vault: &Arc<Vault>) -> Self {
        Self::new(Searched::Json(Box::new(Json::new(finder, action))), Restore::json(vault))
    }

    /// Text that is not searched.
    pub(super) fn open(vault: &Arc<Vault>) -> Self {
        Self::new(Searched::Open, Restore::text(vault))
    }

    /// JSON that is not searched.
    pub(super) fn open_json(vault: &Arc<Vault>) -> Self {
        Self::new(Searched::Open, Restore::json(vault))
    }

    fn new(search: Searched, restore: Restore) -> Self {
        Self { search, restore, searched: String::new() }
    }

    /// Its detectors fail from now on.
    #[cfg(test)]
    pub(super) fn kill(&mut self) {
        if let Searched::Text(text) = &mut self.search {
            text.search.kill();
        }
    }

    /// Takes a piece; what is certain goes to `out`, and the labels of what was replaced to `hits`.
    pub(super) fn push(&mut self, piece: &str, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        match &mut self.search {
            Searched::Open => self.searched.push_str(piece),
            Searched::Text(text) => text.push(piece, &mut self.searched, hits)?,
            Searched::Json(json) => json.push(piece, &mut self.searched, hits)?,
        }
        self.restore.push(&std::mem::take(&mut self.searched), out);
        Ok(())
    }

    /// What is held goes out, though more may come.
    pub(super) fn cut(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        match &mut self.search {
            Searched::Open => {}
            Searched::Text(text) => text.cut(&mut self.searched, hits)?,
            Searched::Json(json) => json.cut(&mut self.searched, hits)?,
        }
        self.restore.push(&std::mem::take(&mut self.searched), out);
        self.restore.end(out);
        Ok(())
    }

    /// What is held goes out; nothing more comes.
    pub(super) fn end(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        match &mut self.search {
            Searched::Open => {}
            Searched::Text(text) => text.end(&mut self.searched, hits)?,
            Searched::Json(json) => json.end(&mut self.searched, hits)?,
        }
        self.restore.push(&std::mem::take(&mut self.searched), out);
        self.restore.end(out);
        Ok(())
    }
}

/// Plain text that is searched.
struct Text {
    finder: Arc<Finder>,
    action: FilterAction,
    search: Search,
    /// What has no verdict yet.
    held: String,
    cuts: Vec<Cut>,
}

impl Text {
    fn new(finder: &Arc<Finder>, action: FilterAction) -> Self {
        let search = Search::new(finder);
        Self { finder: Arc::clone(finder), action, search, held: String::new(), cuts: Vec::new() }
    }

    fn push(&mut self, piece: &str, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        self.held.push_str(piece);
        self.search.push(piece, &mut self.cuts);
        self.carry_out(out, hits)
    }

    fn cut(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        self.search.cut(&mut self.cuts);
        self.carry_out(out, hits)
    }

    fn end(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        self.search.end(&mut self.cuts);
        self.carry_out(out, hits)
    }

    fn carry_out(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        let mut at = 0;
        for cut in self.cuts.drain(..) {
            match (cut, self.action) {
                (Cut::Pass(length), _) => {
                    out.push_str(&self.held[at..at + length]);
                    at += length;
                }
                (Cut::Drop(length), _) => at += length,
                (Cut::Mark(label), FilterAction::Redact) => {
                    hits.push(label);
                    placeholder(&self.finder, label, out);
                }
                (Cut::Mark(label), FilterAction::Block) => return Err(Stopped::Blocked(label)),
            }
        }
        self.held.drain(..at);
        Ok(())
    }
}

/// What stands in the place of a match.
pub(super) fn placeholder(finder: &Finder, label: usize, out: &mut String) {
    out.push('[');
    out.push_str(finder.name(label).as_str());
    out.push(']');
}
