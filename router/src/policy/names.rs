//! What clients may ask for as `model`, and what it means: a route, else a model of the cluster's own, as `m`, `m@v1` or
//! `m:adapter`.

use penstock_cluster::catalog::{self, Catalog, Name};
use serde::Serialize;

/// What a client's `model` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A route.
    Route(Name),
    /// A model, a version or an adapter.
    Target(catalog::Target),
    /// Something that this tenant may not ask for; clients are told the same as of what is unknown.
    NotAllowed(String),
    /// Nothing.
    Unknown(String),
}

/// Finds out what a name means to a tenant.
pub fn resolve(catalog: &Catalog, tenant: &str, asked: &str) -> Asked {
    let meaning = if let Some((name, _)) = catalog.routes.get_key_value(asked) {
        Some(Asked::Route(name.clone()))
    } else {
        direct(catalog, asked).map(Asked::Target)
    };
    match meaning {
        None => Asked::Unknown(asked.to_owned()),
        Some(_) if !may_ask(catalog, tenant, asked) => Asked::NotAllowed(asked.to_owned()),
        Some(meaning) => meaning,
    }
}

/// The names that a tenant may ask for: routes, models, versions, adapters.
pub fn allowed(catalog: &Catalog, tenant: &str) -> Vec<String> {
    let models = catalog.models.values().flat_map(|model| {
        let versions = model.versions.iter().map(|version| format!("{}@{}", model.name, version.id));
        std::iter::once(model.name.to_string()).chain(versions)
    });
    let adapters = catalog.adapters.values().map(|adapter| format!("{}:{}", *adapter.base, adapter.name));
    let names = catalog.routes.keys().map(Name::to_string).chain(models).chain(adapters);
    let mut names: Vec<String> = names.filter(|name| may_ask(catalog, tenant, name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn may_ask(catalog: &Catalog, tenant: &str, asked: &str) -> bool {
    match catalog.tenants.get(tenant) {
        Some(tenant) => tenant.models.iter().any(|glob| glob.matches(asked)),
        // Without tenants every caller is the default one, and may ask for everything.
        None => catalog.tenants.is_empty(),
    }
}

/// Whether a tenant is one of those that an adapter is for.
pub(super) fn may_use_adapter(catalog: &Catalog, tenant: &str, adapter: &Name) -> bool {
    let tenants = catalog.adapters.get(adapter).map(|adapter| &adapter.tenants);
    match tenants {
        Some(Some(tenants)) => tenants.iter().any(|name| name.as_str() == tenant),
        Some(None) => true,
        None => false,
    }
}

fn direct(catalog: &Catalog, asked: &str) -> Option<catalog::Target> {
    let (rest, adapter) = match asked.split_once(':') {
        Some((rest, adapter)) => (rest, Some(Name::new(adapter).ok()?)),
        None => (asked, None),
    };
    let (model, version) = match rest.split_once('@') {
        Some((model, version)) => (model, Some(Name::new(version).ok()?)),
        None => (rest, None),
    };
    let model = Name::new(model).ok()?;
    let known = match catalog.models.get(&model) {
        // Without tenants, what the workers serve need not be in the catalogue.
        None => catalog.tenants.is_empty(),
        Some(known) => {
            let versions = |wanted: &Name| known.versions.iter().any(|version| version.id == *wanted);
            version.as_ref().is_none_or(versions)
        }
    };
    let fits = |wanted: &Name| catalog.adapters.get(wanted).is_some_and(|adapter| *adapter.base == model);
    let fits = adapter.as_ref().is_none_or(fits);
    (known && fits).then_some(catalog::Target::Local { model, version, adapter })
}

impl Asked {
    /// As the client wrote it, near enough to tell it again.
    pub fn text(&self) -> String {
        match self {
            Self::Route(name) => name.to_string(),
            Self::Target(catalog::Target::Upstream { upstream, model }) => format!("{upstream}/{model}"),
            Self::Target(catalog::Target::Local { model, version, adapter }) => {
                let version = version.as_ref().map(|version| format!("@{version}")).unwrap_or_default();
                let adapter = adapter.as_ref().map(|adapter| format!(":{adapter}")).unwrap_or_default();
                format!("{model}{version}{adapter}")
            }
            Self::NotAllowed(text) | Self::Unknown(text) => text.clone(),
        }
    }
}

impl Serialize for Asked {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}
