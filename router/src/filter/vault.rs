//! What was replaced in requests, and puts it back in answers: `[card-1]` to the model, the card to the client.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use penstock_cluster::catalog::Name;
use serde_json::Value;

use crate::class::{Cut, Finder, Search};
use crate::request::{Input, Request};

/// What stands for what, within one request.
#[derive(Default)]
pub(super) struct Vault {
    replaced: Vec<Replaced>,
    known: HashMap<String, usize>,
    /// Numbers that are given out, by detector.
    numbers: HashMap<Name, usize>,
    hits: Vec<Name>,
}

struct Replaced {
    placeholder: String,
    original: String,
    /// The original within a string of JSON.
    escaped: String,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.replaced.len())
    }
}

impl Vault {
    /// Replaces what is found in what requests of one body say: messages, prompts, arguments and results of calls, and
    /// fields that no face knows.
    pub(super) fn redact(&mut self, finder: &Arc<Finder>, requests: &mut [Request]) {
        for request in requests {
            match &mut request.input {
                Input::Chat(chat) => {
                    for message in &mut chat.messages {
                        self.text(finder, &mut message.content);
                        message.tool_calls.iter_mut().for_each(|call| self.json(finder, &mut call.arguments));
                    }
                }
                Input::Text(text) => self.text(finder, text),
                Input::Tokens(_) => {}
            }
            request.unknown.values_mut().for_each(|value| self.value(finder, value));
        }
    }

    /// The detectors of all that was replaced.
    pub(super) fn hits(&self) -> &[Name] {
        &self.hits
    }

    fn text(&mut self, finder: &Arc<Finder>, text: &mut String) {
        let (mut search, mut cuts) = (Search::new(finder), Vec::new());
        search.push(text, &mut cuts);
        search.end(&mut cuts);
        if !cuts.iter().any(|cut| matches!(cut, Cut::Mark(_))) {
            return;
        }
        let (mut out, mut at) = (String::with_capacity(text.len()), 0);
        let mut found: Option<(usize, usize)> = None;
        for cut in cuts.iter().copied().chain([Cut::Pass(0)]) {
            if !matches!(cut, Cut::Drop(_))
                && let Some((label, start)) = found.take()
            {
                let placeholder = self.replace(finder.name(label), &text[start..at], text);
                out.push_str(&placeholder);
            }
            match cut {
                Cut::Pass(length) => {
                    out.push_str(&text[at..at + length]);
                    at += length;
                }
                Cut::Drop(length) => at += length,
                Cut::Mark(label) => found = Some((label, at)),
            }
        }
        *text = out;
    }

    /// Arguments as a model wrote them; what is no JSON is text.
    fn json(&mut self, finder: &Arc<Finder>, text: &mut String) {
        match serde_json::from_str::<Value>(text) {
            Ok(mut value) => {
                let before = self.hits.len();
                self.value(finder, &mut value);
                if self.hits.len() > before {
                    *text = value.to_string();
                }
            }
            Err(_) => self.text(finder, text),
        }
    }

    fn value(&mut self, finder: &Arc<Finder>, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::Number(number) => {
                let mut text = number.to_string();
                let before = self.hits.len();
                self.text(finder, &mut text);
                if self.hits.len() > before {
                    *value = Value::String(text);
                }
            }
            Value::String(text) => self.text(finder, text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(finder, item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.value(finder, member)),
        }
    }

    /// The placeholder of something that was found in a text: the same for the same, and none that stands in the text.
    fn replace(&mut self, name: &Name, original: &str, text: &str) -> String {
        self.hits.push(name.clone());
        if let Some(known) = self.known.get(original) {
            return self.replaced[*known].placeholder.clone();
        }
        let number = self.numbers.entry(name.clone()).or_default();
        let placeholder = loop {
            *number += 1;
            let placeholder = format!("[{name}-{number}]");
            if !text.contains(&placeholder) {
                break placeholder;
            }
        };
        let quoted = Value::String(original.to_owned()).to_string();
        let escaped = quoted[1..quoted.len() - 1].to_owned();
        self.known.insert(original.to_owned(), self.replaced.len());
        self.replaced.push(Replaced { placeholder: placeholder.clone(), original: original.to_owned(), escaped });
        placeholder
    }
}

/// Puts back what was replaced in a text as it comes.
pub(super) struct Restore {
    vault: Arc<Vault>,
    json: bool,
    /// What may be the beginning of a placeholder.
    held: String,
}

impl Restore {
    pub(super) fn text(vault: &Arc<Vault>) -> Self {
        Self { vault: Arc::clone(vault), json: false, held: String::new() }
    }

    /// A text that is JSON.
    pub(super) fn json(vault: &Arc<Vault>) -> Self {
        Self { json: true, ..Self::text(vault) }
    }

    pub(super) fn push(&mut self, piece: &str, out: &mut String) {
        if self.vault.replaced.is_empty() {
            out.push_str(piece);
            return;
        }
        self.held.push_str(piece);
        let mut rest = self.held.as_str();
        while let Some(at) = rest.find('[') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let mut placeholders = self.vault.replaced.iter();
            if let Some(found) = placeholders.clone().find(|it| rest.starts_with(&it.placeholder)) {
                out.push_str(if self.json { &found.escaped } else { &found.original });
                rest = &rest[found.placeholder.len()..];
            } else if placeholders.any(|it| it.placeholder.starts_with(rest)) {
                self.held = rest.to_owned();
                return;
            } else {
                out.push('[');
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        self.held.clear();
    }

    /// What is held is no placeholder.
    pub(super) fn end(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }
}
