//! A route's filter: detectors look through answers as they come, and what they find is replaced or ends the answer.
//! Where the route says so, what they find in requests is replaced before a model sees it, and put back in the answer.
//!
//! It stands between dispatch and the faces, for every target and every face. It fails closed: where a detector cannot be
//! used, nothing passes. What is restored is not searched again: it is the client's own.

mod channel;
mod json;
mod vault;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use penstock_cluster::catalog::{self, Catalog, FilterAction, Lined, Name};
use penstock_proto::ErrorCode;

use crate::class::{self, Finder};
use crate::metrics::Metrics;
use crate::request::{Constraint, Delta, Failure, Input, Request, ToolCallDelta};
use channel::Channel;
use vault::Vault;

/// What is done with a match where it stands in the way of the answer's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Text: a placeholder may stand in it.
    Free,
    /// JSON that a schema describes: any match ends it.
    Json,
    /// Text that a grammar describes: the same.
    Held,
}

/// A route's filter, compiled.
#[derive(Debug)]
pub(crate) struct Rules {
    input: Option<Arc<Finder>>,
    output: Option<Arc<Finder>>,
    action: FilterAction,
}

impl Rules {
    /// Compiles a route's filter; `read` reads a dictionary.
    pub(crate) fn compile(
        catalog: &Catalog,
        filter: &catalog::Filter,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, class::Error> {
        let finder = |names: &[Lined<Name>]| match names {
            [] => Ok(None),
            names => Finder::compile(catalog, names.iter().map(|name| &name.value), &read).map(|it| Some(Arc::new(it))),
        };
        Ok(Self { input: finder(&filter.input)?, output: finder(&filter.output)?, action: filter.action })
    }

    /// Makes requests of one body ready to go out: what the filter finds in them is replaced.
    pub(crate) fn begin(self: &Arc<Self>, requests: &mut [Request], metrics: &Arc<Metrics>) -> Result<Guard, Failure> {
        if self.output.is_some() && requests.iter().any(|request| request.sampling.top_logprobs.is_some()) {
            let message =
                "logprobs cannot be told: this route's answers are filtered, and they would show what was there";
            return Err(Failure::field("logprobs", message));
        }
        let mut vault = Vault::default();
        if let Some(finder) = &self.input {
            if requests.iter().any(|request| matches!(request.input, Input::Tokens(_))) {
                let message = "prompt must be text: this route replaces parts of it, which token ids do not allow";
                return Err(Failure::field("prompt", message));
            }
            guarded(|| {
                vault.redact(finder, requests);
                Ok(())
            })?;
            vault.hits().iter().for_each(|name| metrics.filter_hit(name, "replace"));
        }
        let form = match requests.iter().find_map(|request| request.constraint.as_ref()) {
            None => Form::Free,
            Some(Constraint::JsonSchema(_)) => Form::Json,
            Some(Constraint::Regex(_) | Constraint::Grammar(_)) => Form::Held,
        };
        Ok(Guard { rules: Arc::clone(self), vault: Arc::new(vault), form, metrics: Arc::clone(metrics) })
    }
}

/// What watches over the answers to the requests of one body.
#[derive(Clone)]
pub(crate) struct Guard {
    rules: Arc<Rules>,
    vault: Arc<Vault>,
    form: Form,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("form", &self.form).finish_non_exhaustive()
    }
}

impl Guard {
    /// An answer's pieces after the filter.
    pub(crate) fn watch(
        &self,
        answer: impl Stream<Item = Result<Delta, Failure>> + Send + 'static,
    ) -> BoxStream<'static, Result<Delta, Failure>> {
        let filter = Filter::new(self.clone());
        let state = (Box::pin(answer), filter, VecDeque::new());
        stream::unfold(Some(state), |state| async move {
            let (mut answer, mut filter, mut ready) = state?;
            loop {
                if let Some(delta) = ready.pop_front() {
                    return Some((Ok(delta), Some((answer, filter, ready))));
                }
                match answer.next().await? {
                    Ok(delta) => match filter.pass(delta) {
                        Ok(deltas) => ready.extend(deltas),
                        Err(failure) => return Some((Err(failure), None)),
                    },
                    Err(failure) => return Some((Err(filter.guard.clean(failure)), None)),
                }
            }
        })
        .boxed()
    }

    /// A failure as a client may see it: an upstream's words may hold anything.
    pub(crate) fn clean(&self, failure: Failure) -> Failure {
        let Some(finder) = &self.rules.output else { return failure };
        let cleaned = guarded(|| {
            let (mut message, mut hits) = (String::new(), Vec::new());
            let mut channel = Channel::text(finder, FilterAction::Redact, &self.vault);
            channel.push(&failure.message, &mut message, &mut hits)?;
            channel.end(&mut message, &mut hits)?;
            Ok((message, hits))
        });
        match cleaned {
            Ok((message, hits)) => {
                hits.iter().for_each(|label| self.metrics.filter_hit(finder.name(*label), "redact"));
                Failure { message, ..failure }
            }
            Err(Stopped::Blocked(_) | Stopped::Broken) => broken(),
        }
    }
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    /// A detector found something; its label.
    Blocked(usize),
    /// A detector failed.
    Broken,
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        broken()
    }
}

fn broken() -> Failure {
    Failure::new(ErrorCode::Detectors, "a detector of the route's filter failed; nothing passes unsearched")
}

/// Work that ends an answer where it panics, rather than the task.
fn guarded<T>(work: impl FnOnce() -> Result<T, Stopped>) -> Result<T, Stopped> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("a detector of a filter failed; the answer is ended");
        Err(Stopped::Broken)
    })
}

/// The filter of one answer.
struct Filter {
    guard: Guard,
    text: Channel,
    /// Of the calls so far, by their index.
    calls: Vec<(u32, Channel)>,
    hits: Vec<usize>,
}

impl Filter {
    fn new(guard: Guard) -> Self {
        let Guard { rules, vault, form, .. } = &guard;
        let text = match (&rules.output, form) {
            (None, Form::Json) => Channel::open_json(vault),
            (None, Form::Free | Form::Held) => Channel::open(vault),
            (Some(finder), Form::Json) => Channel::json(finder, FilterAction::Block, vault),
            (Some(finder), Form::Held) => Channel::text(finder, FilterAction::Block, vault),
            (Some(finder), Form::Free) => Channel::text(finder, rules.action, vault),
        };
        Self { guard, text, calls: Vec::new(), hits: Vec::new() }
    }

    /// What passes of a piece, and of what was held before it.
    fn pass(&mut self, delta: Delta) -> Result<Vec<Delta>, Failure> {
        let passed = guarded(|| self.search(delta));
        let Some(finder) = &self.guard.rules.output else { return Ok(passed?) };
        for label in std::mem::take(&mut self.hits) {
            self.guard.metrics.filter_hit(finder.name(label), "redact");
        }
        passed.map_err(|stopped| match stopped {
            Stopped::Broken => broken(),
            Stopped::Blocked(label) => {
                let name = finder.name(label);
                self.guard.metrics.filter_hit(name, "block");
                let message =
                    format!("the answer was ended by the route's filter: detector {name} found something in it");
                Failure::new(ErrorCode::PolicyFilter, message)
            }
        })
    }

    fn search(&mut self, delta: Delta) -> Result<Vec<Delta>, Stopped> {
        let Delta { text, logprobs, tool_calls, finish } = delta;
        let mut out = Vec::new();
        let mut next = Delta { logprobs, ..Delta::default() };
        if !text.is_empty() {
            // What is held of a call stands before the text.
            let mut before = Delta::default();
            self.flush_calls(&mut before)?;
            out.push(before);
            self.text.push(&text, &mut next.text, &mut self.hits)?;
        }
        for call in tool_calls {
            if call.start.is_some() {
                self.text.cut(&mut next.text, &mut self.hits)?;
                self.flush_calls(&mut next)?;
            }
            next.tool_calls.push(self.call(call)?);
        }
        if finish.is_some() {
            self.text.end(&mut next.text, &mut self.hits)?;
            for (index, channel) in &mut self.calls {
                let mut arguments = String::new();
                channel.end(&mut arguments, &mut self.hits)?;
                add(&mut next, *index, arguments);
            }
        }
        next.finish = finish;
        out.push(next);
        out.iter_mut()
            .for_each(|delta| delta.tool_calls.retain(|call| call.start.is_some() || !call.arguments.is_empty()));
        out.retain(|delta| *delta != Delta::default());
        Ok(out)
    }

    fn call(&mut self, call: ToolCallDelta) -> Result<ToolCallDelta, Stopped> {
        let ToolCallDelta { index, start, arguments } = call;
        let Guard { rules, vault, .. } = &self.guard;
        if let (Some(start), Some(finder)) = (&start, &rules.output) {
            // A name or an id with something else in its place would be another one.
            for word in [&start.name, &start.id] {
                let mut channel = Channel::text(finder, FilterAction::Block, vault);
                channel.push(word, &mut String::new(), &mut self.hits)?;
                channel.end(&mut String::new(), &mut self.hits)?;
            }
        }
        let at = match self.calls.iter().position(|(known, _)| *known == index) {
            Some(at) => at,
            None => {
                let channel = match &rules.output {
                    Some(finder) => Channel::json(finder, rules.action, vault),
                    None => Channel::open_json(vault),
                };
                self.calls.push((index, channel));
                self.calls.len() - 1
            }
        };
        let mut passed = String::new();
        self.calls[at].1.push(&arguments, &mut passed, &mut self.hits)?;
        Ok(ToolCallDelta { index, start, arguments: passed })
    }

    /// Adds what is held of the calls so far.
    fn flush_calls(&mut self, delta: &mut Delta) -> Result<(), Stopped> {
        for (index, channel) in &mut self.calls {
            let mut arguments = String::new();
            channel.cut(&mut arguments, &mut self.hits)?;
            add(delta, *index, arguments);
        }
        Ok(())
    }
}

fn add(delta: &mut Delta, index: u32, arguments: String) {
    if !arguments.is_empty() {
        delta.tool_calls.push(ToolCallDelta { index, start: None, arguments });
    }
}

#[cfg(test)]
mod tests;
