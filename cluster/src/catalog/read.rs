//! From YAML text to things with names and places. A file that cannot be read gives one problem; the files beside it are
//! read all the same.

use std::sync::Arc;

use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter as _};

use super::document::{Document, Lined};
use super::{
    Adapter, At, Catalog, Detector, Invalid, Issuer, Model, Name, Named, Operator, Placed, Problem, Route, Source,
};
use super::{Tenant, Upstream};

/// How alike a key must be to be named as what was meant.
const LIKENESS: f64 = 0.7;

/// Reads the files into one catalogue that nobody has checked as a whole yet.
pub(super) fn read(sources: Vec<Source>) -> Result<Catalog, Invalid> {
    let mut catalog = Catalog::default();
    let mut problems = Vec::new();
    for source in &sources {
        let file: Arc<str> = source.file.as_str().into();
        match serde_saphyr::from_multiple::<Document>(&source.text) {
            Ok(documents) => {
                for document in documents {
                    add(&mut catalog, document, &file, &mut problems);
                }
            }
            Err(error) => problems.push(problem(&file, error.without_snippet())),
        }
    }
    catalog.sources = sources;
    if problems.is_empty() { Ok(catalog) } else { Err(Invalid { problems }) }
}

fn add(catalog: &mut Catalog, document: Document, file: &Arc<str>, problems: &mut Vec<Problem>) {
    let Document { tenants, keys, revoked, upstreams, operators, issuers, models, adapters, routes, detectors } =
        document;
    catalog.keys.extend(keys.into_iter().map(|key| placed(file, key)));
    catalog.revoked.extend(revoked.into_iter().map(|revoked| placed(file, revoked)));
    let mut place = Place { file, problems };
    place.all("tenant", tenants, &mut catalog.tenants, |it: &Tenant| &it.name);
    place.all("upstream", upstreams, &mut catalog.upstreams, |it: &Upstream| &it.name);
    place.all("operator", operators, &mut catalog.operators, |it: &Operator| &it.name);
    place.all("issuer", issuers, &mut catalog.issuers, |it: &Issuer| &it.name);
    place.all("model", models, &mut catalog.models, |it: &Model| &it.name);
    place.all("adapter", adapters, &mut catalog.adapters, |it: &Adapter| &it.name);
    place.all("route", routes, &mut catalog.routes, |it: &Route| &it.name);
    place.all("detector", detectors, &mut catalog.detectors, |it: &Detector| &it.name);
}

fn placed<T>(file: &Arc<str>, Lined { line, value }: Lined<T>) -> Placed<T> {
    Placed { at: At { file: Arc::clone(file), line }, value }
}

struct Place<'a> {
    file: &'a Arc<str>,
    problems: &'a mut Vec<Problem>,
}

impl Place<'_> {
    fn all<T>(&mut self, kind: &str, items: Vec<Lined<T>>, into: &mut Named<T>, name: fn(&T) -> &Name) {
        for Lined { line, value } in items {
            let at = At { file: Arc::clone(self.file), line };
            match into.entry(name(&value).clone()) {
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(Placed { at, value });
                }
                std::collections::btree_map::Entry::Occupied(first) => {
                    let why = format!("{kind} {} is there already, at {}", first.key(), first.get().at);
                    self.problems.push(Problem { at, why });
                }
            }
        }
    }
}

fn problem(file: &Arc<str>, error: &Error) -> Problem {
    let line = error.location().map_or(0, |location| location.line());
    let why = match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => unknown("word", variant, expected),
        Error::SerdeMissingField { field, .. } => format!("the key {field} is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key} is there twice"),
        other => DefaultMessageFormatter.format_message(other).escape_debug().to_string(),
    };
    Problem { at: At { file: Arc::clone(file), line }, why }
}

fn unknown(what: &str, found: &str, known: &[&str]) -> String {
    let likeness = |word: &str| strsim::jaro_winkler(word, found);
    let nearest = known.iter().map(|word| (likeness(word), *word)).max_by(|a, b| a.0.total_cmp(&b.0));
    let meant = match nearest {
        Some((likeness, word)) if likeness >= LIKENESS => format!("did you mean {word}? "),
        Some(_) | None => String::new(),
    };
    format!("unknown {what} {found:?}; {meant}known are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let source = Source { file: "a.yaml".to_owned(), text: text.to_owned() };
        match read(vec![source]) {
            Ok(_) => Vec::new(),
            Err(invalid) => invalid.problems.iter().map(Problem::to_string).collect(),
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_by_file_line_and_reason() {
        for (text, expected) in [
            (
                "tenants:\n  - name: a\n    modles: []\n",
                "a.yaml:3: unknown key \"modles\"; did you mean models? known are",
            ),
            ("tenant: []\n", "a.yaml:1: unknown key \"tenant\"; did you mean tenants?"),
            (
                "---\nmodels: []\n---\nroutes:\n  - name: r\n    xyzzy: 1\n",
                "a.yaml:6: unknown key \"xyzzy\"; known are",
            ),
            ("tenants:\n  - {name: a, models: [], class: secret}\n", "a.yaml:2: unknown word \"secret\"; "),
            ("tenants:\n  - name: a\n", "a.yaml:2: the key models is missing"),
            ("models:\n  - name: m\n    name: n\n", "a.yaml:3: the key name is there twice"),
            ("models:\n  - name: a@b\n", "a.yaml:2: \\\"a@b\\\" is no name"),
            ("models:\n  - {name: m, cost: {gpu_hour: -1}}\n", "a.yaml:2: -1 is no amount of dollars"),
            ("models: [\n", "a.yaml:"),
            ("models:\n\t- a\n", "a.yaml:2: "),
            ("operators:\n  - name: o\n    role: admin\n    sha256: psk_abc\n", "a.yaml:4: this is no SHA-256"),
            ("a: &a [*a]\n", "a.yaml:1: "),
            ("models:\n  - name: m\n  - name: n\n  - name: m\n", "a.yaml:4: model m is there already, at a.yaml:2"),
            (
                "routes:\n  - name: r\n    targets:\n      - {upstream: u, model: m, version: v}\n",
                "a.yaml:4: a model of an upstream has no version here",
            ),
            (
                "routes:\n  - name: r\n    targets: []\n    rules:\n      - when: request.task\n        targets: []\n",
                "a.yaml:5: the rule gives string; it must give a bool",
            ),
            ("detectors:\n  - name: d\n    pattern: '(?=a)'\n    class: public\n", "a.yaml:3: the pattern cannot be"),
        ] {
            let problems = problems(text);
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{text}: {problems:#?}");
        }
    }

    #[test]
    fn documents_and_files_add_up() {
        let source = |file: &str, text: &str| Source { file: file.to_owned(), text: text.to_owned() };
        let one = source("one.yaml", "models: [{name: a}]\n---\nmodels:\n  - name: b\n---\n");
        let catalog = read(vec![one.clone(), source("two.yaml", "models: [{name: c}]\n"), source("empty.yaml", "")]);
        let catalog = catalog.unwrap();
        assert_eq!(catalog.models.keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(catalog.models["b"].at.to_string(), "one.yaml:4");
        let twice = read(vec![one, source("two.yaml", "models: [{name: b}]\n")]).unwrap_err();
        assert_eq!(twice.to_string(), "two.yaml:1: model b is there already, at one.yaml:4");
    }
}
