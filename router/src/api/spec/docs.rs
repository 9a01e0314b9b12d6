//! The table as `docs/api.md`.

use std::fmt::Write as _;

use super::CALLS;
use super::field::{Body, Fate, Spec};

const HEAD: &str = "# The HTTP faces, field by field

Generated from `router/src/api/spec.rs`; `cargo test -p penstock-router docs_are_current` compares, and with
`PENSTOCK_UPDATE=1` rewrites. The same table is `GET /openapi.json`.

A field is **served**, **ignored** (taken, and it changes nothing), or **refused** (`400`, `param` names it) unless its
value asks for nothing: null always does, and the values named here. A field that is in no table is not forwarded, and
named in the response header `x-penstock-ignored`. A field that is null counts as left out.
";

/// The page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for call in CALLS {
        section(&mut page, call);
    }
    page
}

fn section(page: &mut String, call: &Spec) {
    let Spec { method, path, summary, .. } = call;
    let streams = if call.streams { " Streams." } else { "" };
    write!(page, "\n## {method} {path}\n\n{summary}.{streams}\n").expect("a string takes everything");
    if let Some(body) = &call.body {
        page.push_str("\n| field | what becomes of it | may be | |\n| --- | --- | --- | --- |\n");
        rows(page, body);
    }
}

fn rows(page: &mut String, body: &Body) {
    for (name, field, fate) in body.fates() {
        let fate = match fate {
            Fate::Served if field.is_some_and(|field| field.required) => "served, required".to_owned(),
            Fate::Served => "served".to_owned(),
            Fate::Ignored => "ignored".to_owned(),
            Fate::Refused([]) => "refused".to_owned(),
            Fate::Refused(but) => format!("refused but for `{}`", but.join("`, `")),
        };
        let (of, note) = field.map_or_else(Default::default, |field| (field.of.to_string(), field.note));
        writeln!(page, "| `{name}` | {fate} | {of} | {note} |").expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_are_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
        if std::env::var_os("PENSTOCK_UPDATE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == page(), "docs/api.md is out of date: run this test with PENSTOCK_UPDATE=1 and commit it");
    }
}
