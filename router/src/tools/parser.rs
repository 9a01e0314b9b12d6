//! Reads calls out of an answer as it comes. Text goes on at once, but for what may be markup; arguments go on as they
//! are written, as long as they are JSON. What looks like a call and is none goes on as text, to the last character.
//!
//! It goes by characters, so that it does not matter in which pieces they come.

#[cfg(test)]
mod tests;

use super::scanner::Scanner;
use super::{Format, Written};
use crate::request::{Delta, Finish, FinishReason, ToolCallDelta, ToolCallStart, Tools};

/// One answer's way from text to text and calls.
#[derive(Debug)]
pub(crate) struct Parser {
    format: Format,
    names: Vec<String>,
    several: bool,
    ids: fastrand::Rng,
    place: Place,
    /// What has come and may be markup or the beginning of a call.
    held: String,
    begun: u32,
    completed: u32,
    out: Vec<Delta>,
}

/// Where in the answer the next character stands.
#[derive(Debug)]
enum Place {
    /// Where there has been nothing but white space, since the beginning or since a call.
    Edge,
    /// Within text.
    Text,
    /// Behind Mistral's marker: its list must begin.
    List,
    /// A call's object must begin.
    Before,
    /// Within a call's object, whose arguments may have begun.
    Object { scanner: Scanner, start: usize, part: Part },
    /// Behind a call's object: what closes it may follow.
    After,
    /// There is nothing to come that anyone wants.
    Done,
}

/// How far a call's object has come.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Its name is not known, or its arguments have not begun.
    Head,
    /// The arguments are passed on.
    Arguments,
    /// The arguments are complete.
    Tail,
}

/// What a call has been found to be.
enum Found {
    /// Nothing yet.
    Nothing,
    /// A call of a tool, with so much of its arguments.
    Call { name: String, arguments: String },
    /// No call of a tool that there is.
    NoCall,
}

impl Parser {
    /// A parser at the beginning of an answer to a request with these tools. Ids are drawn from `ids`.
    pub(crate) fn new(format: Format, tools: &Tools, ids: fastrand::Rng) -> Self {
        Self {
            format,
            names: tools.callable().map(|tool| tool.name.clone()).collect(),
            several: tools.allow_several(),
            ids,
            place: Place::Edge,
            held: String::new(),
            begun: 0,
            completed: 0,
            out: Vec::new(),
        }
    }

    /// Takes a piece of the answer's text, and gives what is sure by now: pieces in which the text comes before the
    /// calls. The last one has the end, where it has come.
    pub(crate) fn pass(&mut self, delta: Delta) -> Vec<Delta> {
        delta.text.chars().for_each(|character| self.step(character));
        if delta.finish.is_some() {
            self.finish();
        }
        let mut out = std::mem::take(&mut self.out);
        if out.is_empty() && (delta.finish.is_some() || !delta.logprobs.is_empty()) {
            out.push(Delta::default());
        }
        if let Some(first) = out.first_mut() {
            first.logprobs = delta.logprobs;
        }
        if let Some(last) = out.last_mut() {
            last.finish = delta.finish.map(|finish| Finish { reason: self.reason(finish.reason), ..finish });
        }
        out
    }

    /// Whether the answer has its one call, and what is still to come of it does not matter.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.place, Place::Done)
    }

    fn reason(&self, reason: FinishReason) -> FinishReason {
        match reason {
            FinishReason::Stop if self.completed > 0 => FinishReason::ToolCalls,
            FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls => reason,
        }
    }

    fn step(&mut self, character: char) {
        match &mut self.place {
            Place::Done => {}
            Place::Edge => {
                self.held.push(character);
                self.edge();
            }
            Place::Text => {
                self.held.push(character);
                self.text();
            }
            Place::List => match character {
                '[' => self.hold(character, Place::Before),
                character if is_space(character) => self.held.push(character),
                _ => self.no_call(character),
            },
            Place::Before => match character {
                '{' => self.object(),
                character if is_space(character) => self.held.push(character),
                _ => self.no_call(character),
            },
            Place::Object { scanner, .. } => match scanner.push(character) {
                Ok(()) => self.within(character),
                Err(_) => self.no_call(character),
            },
            Place::After => {
                self.held.push(character);
                self.after();
            }
        }
    }

    /// Whether what is held, white space aside, begins a call.
    fn edge(&mut self) {
        let separator = |c| self.format == Format::Llama && self.completed > 0 && c == ';';
        let rest = self.held.trim_start_matches(|c| is_space(c) || separator(c));
        let opening = self.format.opening();
        if rest == opening {
            self.place = self.opened();
        } else if rest == "{" && self.format == Format::Llama {
            self.held.pop();
            self.object();
        } else if !opening.starts_with(rest) {
            self.text();
        }
    }

    /// Gives out what is held, but for the beginning of a marker at its end.
    fn text(&mut self) {
        let opening = self.format.opening();
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.into_iter().find(|at| opening.starts_with(&self.held[*at..])).unwrap_or(self.held.len());
        let marker = self.held.split_off(keep);
        let text = std::mem::replace(&mut self.held, marker);
        self.say(&text);
        self.place = if self.held == opening { self.opened() } else { Place::Text };
    }

    fn opened(&self) -> Place {
        match self.format {
            Format::Mistral => Place::List,
            Format::Hermes | Format::Llama | Format::Generic => Place::Before,
        }
    }

    fn hold(&mut self, character: char, place: Place) {
        self.held.push(character);
        self.place = place;
    }

    fn object(&mut self) {
        let mut scanner = Scanner::new();
        scanner.push('{').expect("a value may begin so");
        let start = self.held.len();
        self.hold('{', Place::Object { scanner, start, part: Part::Head });
    }

    /// A character that goes on with a call's object.
    fn within(&mut self, character: char) {
        let Place::Object { scanner, start, part } = &self.place else { return };
        let (depth, start) = (scanner.depth(), *start);
        match *part {
            Part::Head => {
                self.held.push(character);
                self.head(character, depth, start);
            }
            Part::Arguments => {
                self.argue(character);
                if depth == 1 {
                    self.enter(Part::Tail);
                    self.complete();
                }
            }
            Part::Tail => {
                self.held.push(character);
                self.closed(depth);
            }
        }
    }

    fn head(&mut self, character: char, depth: usize, start: usize) {
        let found = match (character, depth) {
            ('{', 2) => self.early(start),
            ('}', 0) => self.whole(start),
            _ => Found::Nothing,
        };
        let (name, arguments) = match found {
            Found::Nothing => return,
            Found::NoCall => return self.give_up(),
            Found::Call { name, arguments } => (name, arguments),
        };
        self.held.clear();
        self.begin(name, &arguments);
        if depth == 0 {
            self.complete();
            self.closed(depth);
        } else {
            self.enter(Part::Arguments);
        }
    }

    /// The name, where the object that has just been opened is its arguments.
    fn early(&self, start: usize) -> Found {
        let head = &self.held[start..self.held.len() - 1];
        match serde_json::from_str::<Written<'_>>(&format!("{head}null}}")) {
            Ok(written) if written.arguments.get() == "null" => self.known(written.name, "{"),
            Ok(_) | Err(_) => Found::Nothing,
        }
    }

    /// The call that the whole object is, in whatever order.
    fn whole(&self, start: usize) -> Found {
        match serde_json::from_str::<Written<'_>>(&self.held[start..]) {
            Ok(written) if written.arguments.get().starts_with('{') => {
                self.known(written.name, written.arguments.get())
            }
            Ok(_) | Err(_) => Found::NoCall,
        }
    }

    fn known(&self, name: String, arguments: &str) -> Found {
        if self.names.contains(&name) { Found::Call { name, arguments: arguments.to_owned() } } else { Found::NoCall }
    }

    fn enter(&mut self, next: Part) {
        if let Place::Object { part, .. } = &mut self.place {
            *part = next;
        }
    }

    fn complete(&mut self) {
        self.completed += 1;
        if !self.several {
            self.held.clear();
            self.place = Place::Done;
        }
    }

    /// Leaves a call's object where its last brace has come.
    fn closed(&mut self, depth: usize) {
        if depth == 0 && !self.is_done() {
            self.held.clear();
            self.place = match self.format {
                Format::Hermes | Format::Generic | Format::Mistral => Place::After,
                Format::Llama => Place::Edge,
            };
        }
    }

    /// Behind a call's object, what is held either closes it or belongs to what comes next.
    fn after(&mut self) {
        let rest = self.held.trim_start_matches(is_space);
        let (goes_on, next) = match self.format {
            Format::Mistral => match rest {
                "" => (true, None),
                "," => (true, Some(Place::Before)),
                "]" => (true, Some(Place::Edge)),
                _ => (false, None),
            },
            Format::Hermes | Format::Generic | Format::Llama => {
                let closing = self.format.closing().unwrap_or_default();
                (closing.starts_with(rest), (rest == closing).then_some(Place::Edge))
            }
        };
        if !goes_on {
            self.place = Place::Edge;
            std::mem::take(&mut self.held).chars().for_each(|character| self.step(character));
        } else if let Some(place) = next {
            if matches!(place, Place::Edge) {
                self.held.clear();
            }
            self.place = place;
        }
    }

    /// What is held is no call, and the character is what comes next.
    fn no_call(&mut self, character: char) {
        self.give_up();
        self.step(character);
    }

    fn give_up(&mut self) {
        let text = std::mem::take(&mut self.held);
        self.say(&text);
        self.place = Place::Text;
    }

    fn finish(&mut self) {
        let blank = self.held.chars().all(is_space);
        let markup = match &self.place {
            Place::Edge => blank && self.completed > 0,
            Place::After | Place::Object { part: Part::Arguments | Part::Tail, .. } | Place::Done => true,
            Place::Text | Place::List | Place::Before | Place::Object { part: Part::Head, .. } => false,
        };
        let text = std::mem::take(&mut self.held);
        if !markup {
            self.say(&text);
        }
    }

    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(last) if last.tool_calls.is_empty() => last.text.push_str(text),
            Some(_) | None => self.out.push(Delta { text: text.to_owned(), ..Delta::default() }),
        }
    }

    fn begin(&mut self, name: String, arguments: &str) {
        let start = Some(ToolCallStart { id: self.id(), name });
        let call = ToolCallDelta { index: self.begun, start, arguments: arguments.to_owned() };
        self.begun += 1;
        match self.out.last_mut() {
            Some(last) => last.tool_calls.push(call),
            None => self.out.push(Delta { tool_calls: vec![call], ..Delta::default() }),
        }
    }

    /// One more character of the last call's arguments.
    fn argue(&mut self, character: char) {
        let index = self.begun - 1;
        let more = || ToolCallDelta { index, start: None, arguments: character.to_string() };
        match self.out.last_mut() {
            Some(last) => match last.tool_calls.last_mut() {
                Some(call) => call.arguments.push(character),
                None => last.tool_calls.push(more()),
            },
            None => self.out.push(Delta { tool_calls: vec![more()], ..Delta::default() }),
        }
    }

    /// A fresh id, as the family knows them.
    fn id(&mut self) -> String {
        let (prefix, length) = match self.format {
            Format::Mistral => ("", 9),
            Format::Hermes | Format::Llama | Format::Generic => ("call_", 24),
        };
        prefix.chars().chain(std::iter::repeat_with(|| self.ids.alphanumeric()).take(length)).collect()
    }
}

/// JSON's white space.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}
