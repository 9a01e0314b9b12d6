//! What the things of a catalogue say of each other: references, duplicates, numbers that make no sense together.

mod ceilings;
mod issuers;
mod routes;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Adapter, At, BUILT_IN_DETECTORS, Catalog, Detector, Digest, Invalid, IssuedKey, Model, Name, Placed, Problem,
    Tenant, Upstream, Usd,
};

/// Checks a catalogue as a whole; returns what is allowed and hardly meant.
pub(super) fn check(catalog: &Catalog) -> Result<Vec<Problem>, Invalid> {
    let mut checker = Checker { catalog, problems: Vec::new(), warnings: Vec::new() };
    checker.keys();
    catalog.keys.iter().for_each(|key| checker.issued_key(key));
    catalog.tenants.values().for_each(|tenant| checker.tenant(tenant));
    catalog.upstreams.values().for_each(|upstream| checker.upstream(upstream));
    catalog.issuers.values().for_each(|issuer| checker.issuer(issuer));
    checker.one_of_each_issuer();
    catalog.models.values().for_each(|model| checker.model(model));
    catalog.adapters.values().for_each(|adapter| checker.adapter(adapter));
    catalog.routes.values().for_each(|route| checker.route(route));
    catalog.detectors.values().for_each(|detector| checker.detector(detector));
    let Checker { mut problems, mut warnings, .. } = checker;
    if problems.is_empty() {
        warnings.extend(ceilings::warnings(catalog));
        return Ok(warnings);
    }
    problems.sort_by(|a, b| a.at.cmp(&b.at));
    Err(Invalid { problems })
}

struct Checker<'a> {
    catalog: &'a Catalog,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Checker<'_> {
    fn refuse(&mut self, at: At, why: impl Into<String>) {
        self.problems.push(Problem { at, why: why.into() });
    }

    fn warn(&mut self, at: At, why: impl Into<String>) {
        self.warnings.push(Problem { at, why: why.into() });
    }

    /// A key stands for one tenant or one operator.
    fn keys(&mut self) {
        let mut seen: BTreeMap<Digest, At> = BTreeMap::new();
        let tenants = self.catalog.tenants.values();
        let keys = tenants.flat_map(|tenant| tenant.keys.iter().map(|key| (key.sha256, tenant.line(key.line))));
        let keys = keys.chain(self.catalog.keys.iter().map(|key| (key.sha256, key.at.clone())));
        let operators = self.catalog.operators.values().map(|operator| (operator.sha256, operator.at.clone()));
        for (digest, at) in keys.chain(operators) {
            if let Some(first) = seen.insert(digest, at.clone()) {
                self.refuse(at, format!("this key is there already, at {first}"));
            }
        }
    }

    fn issued_key(&mut self, key: &Placed<IssuedKey>) {
        if !self.catalog.tenants.contains_key(&key.tenant) {
            let why = self.no("tenant", &key.tenant, self.catalog.tenants.keys());
            self.refuse(key.at.clone(), why);
        }
    }

    fn tenant(&mut self, tenant: &Placed<Tenant>) {
        let ids = tenant.keys.iter().map(|key| (key.id.as_str(), tenant.line(key.line)));
        let issued = self.catalog.keys.iter().filter(|key| key.tenant == tenant.name);
        let ids: Vec<_> = ids.chain(issued.map(|key| (key.id.as_str(), key.at.clone()))).collect();
        let has_no_key = ids.is_empty();
        self.unique("key id", ids.into_iter());
        for glob in &tenant.models {
            let known = names(self.catalog).any(|name| glob.matches(&name));
            let at = tenant.line(glob.line);
            match glob.exact() {
                Some(name) if !known => self.refuse(at, format!("there is no route, model, version or adapter {name}")),
                None if !known => self.warn(at, "no route, model, version or adapter has such a name"),
                Some(_) | None => {}
            }
        }
        for key in &tenant.keys {
            if let Some(end) = self.catalog.revoked_at(&key.sha256) {
                let why = format!("this key was revoked, from {end} on; it can be taken out");
                self.warn(tenant.line(key.line), why);
            }
        }
        if let Some(budget) = &tenant.budget
            && *budget.usd == Usd::default()
        {
            let why = "a budget of nothing; to forbid external calls, leave their routes out of models";
            self.refuse(tenant.line(budget.usd.line), why);
        }
        if has_no_key && !self.issued(&tenant.name) {
            self.warn(tenant.at.clone(), format!("tenant {} has no key and no issuer: nobody can be it", tenant.name));
        }
    }

    fn upstream(&mut self, upstream: &Placed<Upstream>) {
        if upstream.name.as_str().contains('/') || upstream.name.as_str() == "local" {
            self.refuse(upstream.at.clone(), "the name of an upstream is not local, and has no / in it");
        }
        let url = upstream.line(upstream.url.line);
        match Reach::of(&upstream.url) {
            Reach::Safe => {}
            Reach::Clear(host) if upstream.insecure => {
                self.warn(url, format!("what goes to {host} goes in the clear"));
            }
            Reach::Clear(host) => {
                let why = format!("what goes to {host} would go in the clear: https, or insecure: true");
                self.refuse(url, why);
            }
            Reach::No => self.refuse(url, "the url must be https://HOST/… or http://HOST/…, without user or query"),
        }
        let models = upstream.models.iter().map(|model| (model.name.as_str(), upstream.line(model.line)));
        self.unique("model", models);
        for model in &upstream.models {
            if let (Some(context), Some(output)) = (model.context, model.max_output)
                && output >= context
            {
                self.refuse(upstream.line(model.line), "max_output leaves no room for a prompt in context");
            }
        }
    }

    fn model(&mut self, model: &Placed<Model>) {
        self.unique("version", model.versions.iter().map(|version| (version.id.as_str(), model.line(version.line))));
    }

    fn adapter(&mut self, adapter: &Placed<Adapter>) {
        let (base, at) = (&*adapter.base, adapter.line(adapter.base.line));
        if !self.catalog.models.contains_key(base) {
            let why = if self.catalog.adapters.contains_key(base) {
                format!("{base} is an adapter; adapters do not stand on each other, so the base must be a model")
            } else {
                self.no("model", base, self.catalog.models.keys())
            };
            self.refuse(at, why);
        }
        for tenant in adapter.tenants.iter().flatten() {
            if !self.catalog.tenants.contains_key(&tenant.value) {
                let why = self.no("tenant", tenant, self.catalog.tenants.keys());
                self.refuse(adapter.line(tenant.line), why);
            }
        }
    }

    fn detector(&mut self, detector: &Placed<Detector>) {
        let built_in = BUILT_IN_DETECTORS.iter().any(|(name, _)| *name == detector.name.as_str());
        let why = match (built_in, &detector.pattern, &detector.dictionary) {
            (true, None, None) | (false, Some(_), None) | (false, None, Some(_)) => None,
            (true, _, _) => Some("this detector is built in; only its class can be set"),
            (false, Some(_), Some(_)) => Some("a detector has a pattern or a dictionary, not both"),
            (false, None, None) => Some("a detector that is not built in needs a pattern or a dictionary"),
        };
        if let Some(why) = why {
            self.refuse(detector.at.clone(), why);
        }
        if detector.pattern.is_none() && detector.check != super::Check::None {
            self.refuse(detector.at.clone(), "a check is for matches of a pattern, and there is none");
        }
    }

    fn unique<'n>(&mut self, kind: &str, names: impl Iterator<Item = (&'n str, At)>) {
        let mut seen = BTreeSet::new();
        for (name, at) in names {
            if !seen.insert(name) {
                self.refuse(at, format!("{kind} {name} is there twice"));
            }
        }
    }

    /// What to say of a reference to what is not there.
    fn no<'n>(&self, kind: &str, name: &Name, known: impl Iterator<Item = &'n Name>) -> String {
        let known: Vec<&str> = known.map(Name::as_str).collect();
        match known.as_slice() {
            [] => format!("there is no {kind} {name}; there is none at all"),
            known => format!("there is no {kind} {name}; there are: {}", known.join(", ")),
        }
    }
}

/// How what is sent to a URL gets there.
enum Reach<'a> {
    /// Under TLS, or within this machine.
    Safe,
    /// In the clear, to this host.
    Clear(&'a str),
    /// It is no URL that can be called.
    No,
}

impl<'a> Reach<'a> {
    fn of(url: &'a str) -> Self {
        match url.split_once("://").map(|(scheme, rest)| (scheme, host(rest))) {
            Some(("https", Some(_))) => Self::Safe,
            Some(("http", Some(host))) if ["localhost", "127.0.0.1", "[::1]"].contains(&host) => Self::Safe,
            Some(("http", Some(host))) => Self::Clear(host),
            Some(_) | None => Self::No,
        }
    }
}

/// The host of what follows a URL's `://`, where there is neither user nor query.
fn host(rest: &str) -> Option<&str> {
    if rest.contains(['@', '?', '#', '\\']) || rest.contains(char::is_whitespace) {
        return None;
    }
    let authority = rest.split('/').next()?;
    let colon = authority.rfind(':').filter(|colon| !authority[*colon..].contains(']'));
    let host = &authority[..colon.unwrap_or(authority.len())];
    (!host.is_empty()).then_some(host)
}

/// Everything that a client may ask for as `model`.
fn names(catalog: &Catalog) -> impl Iterator<Item = String> {
    let routes = catalog.routes.keys().map(Name::to_string);
    let models = catalog.models.values().flat_map(|model| {
        let versions = model.versions.iter().map(|version| format!("{}@{}", model.name, version.id));
        std::iter::once(model.name.to_string()).chain(versions)
    });
    let adapters = catalog.adapters.values().map(|adapter| format!("{}:{}", *adapter.base, adapter.name));
    routes.chain(models).chain(adapters)
}

#[cfg(test)]
mod tests;
