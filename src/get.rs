//! `penstock get`: the catalogue, read over a router's admin port.

use clap::{Args, ValueEnum};
use penstock_cluster::catalog::{At, Catalog, Lined, Moment, Named, Source};
use penstock_proto::admin::{CatalogVersion, GetCatalogRequest, GetCatalogResponse, ListVersionsRequest};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

use crate::fault::Fault;
use crate::output::Format;
use crate::remote::{Router, ServerArgs};
use crate::{Global, output};

const EXAMPLES: &str = "\
Examples:
  penstock get                          everything that there is, a line each
  penstock get -o yaml                  the files, as they were written
  penstock get routes
  penstock get tenant retail -o json
  penstock get --version 3 -o yaml      what was in force before
  penstock get versions                 who has changed it, and when

Exit codes: 0 done, 1 failed, 2 there is no such thing, 3 the router is not reachable.";

/// The flags of `penstock get`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GetArgs {
    /// What kind of things; all where it is left out
    #[arg(value_enum)]
    kind: Option<Things>,
    /// One of them
    #[arg(requires = "kind")]
    name: Option<String>,
    /// A version that was in force before
    #[arg(long, value_name = "NUMBER")]
    version: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
}

/// What a catalogue holds, and its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Things {
    #[value(alias = "tenant")]
    Tenants,
    #[value(alias = "upstream")]
    Upstreams,
    #[value(alias = "operator")]
    Operators,
    #[value(alias = "model")]
    Models,
    #[value(alias = "adapter")]
    Adapters,
    #[value(alias = "route")]
    Routes,
    #[value(alias = "detector")]
    Detectors,
    #[value(alias = "version")]
    Versions,
}

/// One thing of a catalogue.
struct Thing {
    kind: Things,
    name: String,
    at: At,
    value: Value,
}

/// Prints what is asked for.
pub(crate) async fn run(args: GetArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let format = Format::or_default(global.output);
    if args.kind == Some(Things::Versions) {
        return versions(&mut router, format).await;
    }
    let (version, catalog) = catalog(&mut router, args.version.unwrap_or_default()).await?;
    if (args.kind, format) == (None, Format::Yaml) {
        return catalog.sources().iter().try_for_each(|source| {
            output::line(&format!("# {}", source.file))?;
            output::line(source.text.trim_end())?;
            output::line("---")
        });
    }
    let mut things = things(&catalog)?;
    things.retain(|thing| args.kind.is_none_or(|kind| kind == thing.kind));
    if let Some(name) = &args.name {
        let known: Vec<String> = things.iter().map(|thing| thing.name.clone()).collect();
        things.retain(|thing| thing.name == *name);
        if things.is_empty() {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Fault::bad_input(format!("there is no {name}; there are: {known}")));
        }
    }
    match format {
        Format::Table => table(&things, version.as_ref()),
        Format::Yaml => yaml(&things),
        Format::Json => match (args.kind, args.name, things.as_slice()) {
            (Some(_), Some(_), [thing]) => output::json(&thing.value),
            (Some(_), ..) => output::json(&things.iter().map(|thing| &thing.value).collect::<Vec<_>>()),
            (None, ..) => output::json(&whole(&things, version.as_ref())),
        },
    }
}

/// A version of the catalogue, 0 for the newest; an empty one where nothing was ever applied.
pub(crate) async fn catalog(router: &mut Router, version: u64) -> Result<(Option<CatalogVersion>, Catalog), Fault> {
    let request = router.authorized(GetCatalogRequest { version });
    let answer = router.client.get_catalog(request).await.map_err(|status| router.failed(&status))?.into_inner();
    let GetCatalogResponse { version, sources } = answer;
    let sources = sources.into_iter().map(|source| Source { file: source.file, text: source.text });
    let unreadable = |error| Fault::failed(format!("this program and the router are of different versions: {error}"));
    Ok((version, Catalog::read(sources.collect()).map_err(unreadable)?))
}

async fn versions(router: &mut Router, format: Format) -> Result<(), Fault> {
    let request = router.authorized(ListVersionsRequest { limit: 0 });
    let versions = router.client.list_versions(request).await.map_err(|status| router.failed(&status))?.into_inner();
    let versions = versions.versions;
    match format {
        Format::Json | Format::Yaml => output::json(&versions.iter().map(version_json).collect::<Vec<_>>()),
        Format::Table => {
            let restored = |number: u64| if number == 0 { String::new() } else { number.to_string() };
            let row = |it: &CatalogVersion| [it.number.to_string(), time(it), it.by.clone(), restored(it.restored)];
            output::table(["VERSION", "APPLIED", "BY", "FILES OF"], &versions.iter().map(row).collect::<Vec<_>>())
        }
    }
}

fn time(version: &CatalogVersion) -> String {
    Moment::at(Duration::from_secs(version.applied_at)).to_string()
}

fn version_json(version: &CatalogVersion) -> Value {
    let restored = (version.restored > 0).then_some(version.restored);
    json!({"version": version.number, "applied": time(version), "by": version.by, "restored": restored})
}

fn things(catalog: &Catalog) -> Result<Vec<Thing>, Fault> {
    let mut tenants = catalog.tenants.clone();
    for (name, keys) in catalog.tenant_keys() {
        let keys = keys.into_iter().map(|value| Lined { line: 0, value });
        tenants.entry(name).and_modify(|tenant| tenant.value.keys = keys.collect());
    }
    let mut things = Vec::new();
    add(&mut things, Things::Tenants, &tenants)?;
    add(&mut things, Things::Upstreams, &catalog.upstreams)?;
    add(&mut things, Things::Operators, &catalog.operators)?;
    add(&mut things, Things::Models, &catalog.models)?;
    add(&mut things, Things::Adapters, &catalog.adapters)?;
    add(&mut things, Things::Routes, &catalog.routes)?;
    add(&mut things, Things::Detectors, &catalog.detectors)?;
    Ok(things)
}

fn add<T: Serialize>(things: &mut Vec<Thing>, kind: Things, named: &Named<T>) -> Result<(), Fault> {
    for (name, placed) in named {
        let value = serde_json::to_value(&placed.value).map_err(Fault::failed)?;
        things.push(Thing { kind, name: name.to_string(), at: placed.at.clone(), value: said(value) });
    }
    Ok(())
}

/// Without members that say nothing.
fn said(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, said(value)));
            let says = |value: &Value| !value.is_null() && value.as_object().is_none_or(|inner| !inner.is_empty());
            Value::Object(members.filter(|(_, value)| says(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(said).collect()),
        other => other,
    }
}

fn whole(things: &[Thing], version: Option<&CatalogVersion>) -> Value {
    let mut whole = Map::new();
    whole.insert("version".to_owned(), version.map(version_json).unwrap_or_default());
    for kind in Things::value_variants().iter().filter(|kind| **kind != Things::Versions) {
        let of_kind = things.iter().filter(|thing| thing.kind == *kind);
        whole.insert(plural(*kind), of_kind.map(|thing| thing.value.clone()).collect());
    }
    Value::Object(whole)
}

fn plural(kind: Things) -> String {
    format!("{kind:?}").to_lowercase()
}

/// A document that `apply` takes: JSON is YAML too.
fn yaml(things: &[Thing]) -> Result<(), Fault> {
    let mut last = None;
    for thing in things {
        if last != Some(thing.kind) {
            output::line(&format!("{}:", plural(thing.kind)))?;
            last = Some(thing.kind);
        }
        output::line(&format!("  - {}", thing.value))?;
    }
    Ok(())
}

fn table(things: &[Thing], version: Option<&CatalogVersion>) -> Result<(), Fault> {
    let row = |thing: &Thing| {
        let kind = plural(thing.kind).trim_end_matches('s').to_owned();
        [kind, thing.name.clone(), summary(&thing.value), thing.at.to_string()]
    };
    output::table(["KIND", "NAME", "WHAT", "AT"], &things.iter().map(row).collect::<Vec<_>>())?;
    match version {
        None => output::line("nothing was applied yet: start with `penstock apply -f FILE`"),
        Some(it) => output::line(&format!("version {}, applied by {} at {}", it.number, it.by, time(it))),
    }
}

/// The short fields of a thing, and the names of what it lists.
fn summary(value: &Value) -> String {
    let short = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Object(inner) => {
            let parts = ["name", "id", "upstream", "model"].iter().filter_map(|field| inner.get(*field)?.as_str());
            let parts: Vec<&str> = parts.collect();
            (!parts.is_empty()).then(|| parts.join("/"))
        }
        Value::Null | Value::Array(_) => None,
    };
    let field = |(name, value): (&String, &Value)| {
        let told = match value {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().filter_map(short).collect();
                (!items.is_empty()).then(|| items.join(" "))
            }
            other => short(other),
        };
        told.filter(|_| name != "name" && name != "sha256").map(|told| format!("{name} {told}"))
    };
    let fields = value.as_object().into_iter().flatten().filter_map(field);
    fields.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_summed_up_by_its_short_fields_and_the_names_of_what_it_lists() {
        let value = json!({"name": "assistant", "targets": [{"model": "small", "weight": 3}, {"upstream": "acme",
            "model": "big"}], "rules": [], "filter": null, "order": "given", "limits": {"concurrent": 3}});
        assert_eq!(summary(&value), "targets small acme/big; order given");
        assert_eq!(said(json!({"a": null, "b": {"c": null}, "d": [{"e": null}]})), json!({"d": [{}]}));
    }
}
