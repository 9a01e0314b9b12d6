//! What two catalogues have different, by kind and name.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{Catalog, Lined, Name, Named, Tenant};

/// The kinds of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Who sends requests.
    Tenant,
    /// A provider outside.
    Upstream,
    /// Who runs the cluster.
    Operator,
    /// Who issues tokens that stand for tenants.
    Issuer,
    /// A model of the cluster's own.
    Model,
    /// A LoRA adapter.
    Adapter,
    /// What clients ask for.
    Route,
    /// What is searched for.
    Detector,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tenant => "tenant",
            Self::Upstream => "upstream",
            Self::Operator => "operator",
            Self::Issuer => "issuer",
            Self::Model => "model",
            Self::Adapter => "adapter",
            Self::Route => "route",
            Self::Detector => "detector",
        })
    }
}

/// What happens to one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// It is another.
    Changed {
        /// The fields that differ: before, after.
        fields: Vec<(String, Value, Value)>,
    },
}

/// What happens to each thing that is not the same in both, in the order of kinds and names. Shows as one line for each
/// thing and each of its fields; where they stand in a file makes no difference.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Diff {
    /// What happens to what.
    pub changes: Vec<(Kind, Name, Change)>,
}

impl Diff {
    /// Whether both are the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, name, change) in &self.changes {
            match change {
                Change::Added => writeln!(f, "+ {kind} {name}")?,
                Change::Removed => writeln!(f, "- {kind} {name}")?,
                Change::Changed { fields } => {
                    writeln!(f, "~ {kind} {name}")?;
                    for (field, before, after) in fields {
                        writeln!(f, "    {field}: {before} -> {after}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

pub(super) fn diff(old: &Catalog, new: &Catalog) -> Diff {
    let mut diff = Diff::default();
    diff.kind(Kind::Tenant, &with_keys(old), &with_keys(new));
    diff.kind(Kind::Upstream, &old.upstreams, &new.upstreams);
    diff.kind(Kind::Operator, &old.operators, &new.operators);
    diff.kind(Kind::Issuer, &old.issuers, &new.issuers);
    diff.kind(Kind::Model, &old.models, &new.models);
    diff.kind(Kind::Adapter, &old.adapters, &new.adapters);
    diff.kind(Kind::Route, &old.routes, &new.routes);
    diff.kind(Kind::Detector, &old.detectors, &new.detectors);
    diff
}

/// Tenants with all of their keys, wherever those stand.
fn with_keys(catalog: &Catalog) -> Named<Tenant> {
    let mut tenants = catalog.tenants.clone();
    for (name, keys) in catalog.tenant_keys() {
        let keys = keys.into_iter().map(|value| Lined { line: 0, value });
        tenants.entry(name).and_modify(|tenant| tenant.value.keys = keys.collect());
    }
    tenants
}

impl Diff {
    fn kind<T: Serialize>(&mut self, kind: Kind, old: &Named<T>, new: &Named<T>) {
        let mut names: Vec<&Name> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let change = match (old.get(name), new.get(name)) {
                (None, _) => Change::Added,
                (Some(_), None) => Change::Removed,
                (Some(before), Some(after)) => match fields(&before.value, &after.value) {
                    fields if fields.is_empty() => continue,
                    fields => Change::Changed { fields },
                },
            };
            self.changes.push((kind, name.clone(), change));
        }
    }
}

fn fields<T: Serialize>(before: &T, after: &T) -> Vec<(String, Value, Value)> {
    let written = |thing| serde_json::to_value(thing).expect("things of a catalogue have only strings as keys");
    let (Value::Object(before), Value::Object(mut after)) = (written(before), written(after)) else {
        return Vec::new();
    };
    // Both have all fields of the type.
    let pairs = before.into_iter().map(|(field, before)| {
        let after = after.remove(&field).unwrap_or_default();
        (field, before, after)
    });
    pairs.filter(|(_, before, after)| before != after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Source;

    fn catalog(text: &str) -> Catalog {
        Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: text.to_owned() }]).unwrap()
    }

    #[test]
    fn a_diff_names_kind_name_and_field() {
        let old = catalog("models: [{name: a}, {name: b, ceiling: internal}, {name: c}]\n");
        let new = catalog("# moved\nmodels:\n  - {name: c}\n  - {name: b, ceiling: public}\n  - {name: d}\n");
        let text = "- model a\n~ model b\n    ceiling: \"internal\" -> \"public\"\n+ model d\n";
        assert_eq!(old.diff(&new).to_string(), text);
        assert!(new.diff(&new).is_empty());
        let json = serde_json::to_value(old.diff(&new)).unwrap();
        assert_eq!(json["changes"][0], serde_json::json!(["model", "a", "removed"]));
    }
}
