//! Routes: that every target is there, has a price, and can have traffic.

use std::collections::BTreeSet;

use super::super::{
    BUILT_IN_DETECTORS, Canary, Catalog, Filter, Lined, Name, Overflow, Placed, Route, Shadow, Share, Target, Upstream,
};
use super::Checker;

/// The bytes that an output filter holds back at most: a longer match could slip through it.
const FILTER_LIMIT: usize = 256;

/// What weights mean in a list of targets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    /// They split the traffic.
    Split,
    /// The list is in order, and weights have no place.
    None,
}

impl Checker<'_> {
    pub(super) fn route(&mut self, route: &Placed<Route>) {
        if route.targets.is_empty() {
            self.refuse(route.at.clone(), "a route needs targets");
        }
        self.targets(route, &route.targets, Weights::Split);
        for rule in &route.rules {
            if rule.targets.is_empty() {
                self.refuse(route.line(rule.line), "a rule needs targets");
            }
            self.targets(route, &rule.targets, Weights::Split);
        }
        if let Some(overflow) = &route.overflow {
            self.overflow(route, overflow);
        }
        self.targets(route, &route.fallback, Weights::None);
        if let Some(shadow) = &route.shadow {
            self.shadow(route, shadow);
        }
        if let Some(filter) = &route.filter {
            self.filter(route, filter);
        }
        if let Some(canary) = &route.canary {
            self.canary(route, canary);
        }
    }

    fn targets(&mut self, route: &Placed<Route>, shares: &[Lined<Share>], weights: Weights) {
        let mut seen = BTreeSet::new();
        for share in shares {
            let at = route.line(share.line);
            if !seen.insert(&share.target) {
                self.refuse(at.clone(), "this target is in the list already");
            }
            if let Err(why) = self.target(&share.target) {
                self.refuse(at.clone(), why);
            }
            if weights == Weights::None && share.weight.is_some() {
                self.refuse(at, "a weight has no meaning here: these targets are tried in order");
            }
        }
        let weighted = shares.iter().filter(|share| share.weight.is_some()).count();
        let Some(first) = shares.first().filter(|_| weights == Weights::Split && weighted > 0) else { return };
        if weighted < shares.len() {
            self.refuse(
                route.line(first.line),
                "weights stand on all targets of a list, or on none: then they are tried in order",
            );
        } else if shares.iter().all(|share| share.weight == Some(0)) {
            self.refuse(route.line(first.line), "all weights are 0, so nothing has traffic");
        }
    }

    fn target(&self, target: &Target) -> Result<(), String> {
        match target {
            Target::Local { model, version, adapter } => self.local(model, version.as_ref(), adapter.as_ref()),
            Target::Upstream { upstream: name, model } => {
                let upstream = self.catalog.upstreams.get(name);
                let upstream = upstream.ok_or_else(|| self.no("upstream", name, self.catalog.upstreams.keys()))?;
                external(self.catalog, upstream, model.as_str())
            }
        }
    }

    fn local(&self, name: &Name, version: Option<&Name>, adapter: Option<&Name>) -> Result<(), String> {
        let Some(model) = self.catalog.models.get(name) else {
            if self.catalog.routes.contains_key(name) {
                return Err(format!("{name} is a route; a target is a model, so that routes cannot lead in a circle"));
            }
            return Err(self.no("model", name, self.catalog.models.keys()));
        };
        if let Some(version) = version
            && model.versions.iter().all(|known| known.id != *version)
        {
            return Err(self.no(&format!("version of {name}"), version, model.versions.iter().map(|known| &known.id)));
        }
        if let Some(adapter) = adapter {
            match self.catalog.adapters.get(adapter) {
                None => return Err(self.no("adapter", adapter, self.catalog.adapters.keys())),
                Some(known) if *known.base != *name => {
                    return Err(format!("adapter {adapter} is for {}, not for {name}", *known.base));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn overflow(&mut self, route: &Placed<Route>, overflow: &Lined<Overflow>) {
        let at = route.line(overflow.line);
        if overflow.targets.is_empty() {
            self.refuse(at.clone(), "overflow needs targets");
        }
        if overflow.below_wait_ms > overflow.above_wait_ms {
            self.refuse(at, "below_wait_ms is over above_wait_ms: overflow would end before it begins");
        }
        self.targets(route, &overflow.targets, Weights::None);
    }

    fn shadow(&mut self, route: &Placed<Route>, shadow: &Lined<Shadow>) {
        if shadow.targets.is_empty() {
            self.refuse(route.line(shadow.line), "shadow needs targets");
        }
        self.targets(route, &shadow.targets, Weights::None);
    }

    fn filter(&mut self, route: &Placed<Route>, filter: &Filter) {
        if filter.output.is_empty() && filter.input.is_empty() {
            self.refuse(route.at.clone(), "a filter looks for nothing: name detectors under output or input");
        }
        for name in filter.output.iter().chain(&filter.input) {
            let at = route.line(name.line);
            let built_in = BUILT_IN_DETECTORS.iter().any(|(known, _)| *known == name.as_str());
            match self.catalog.detectors.get(&name.value) {
                None if built_in => {}
                None => {
                    let known = self.catalog.detectors.keys();
                    let why = self.no("detector", name, known);
                    let built_in: Vec<&str> = BUILT_IN_DETECTORS.iter().map(|(known, _)| *known).collect();
                    self.refuse(at, format!("{why}; built in are {}", built_in.join(", ")));
                }
                Some(detector) => match detector.pattern.as_ref().map(|pattern| pattern.longest()) {
                    Some(Some(longest)) if longest > FILTER_LIMIT => {
                        let why = format!(
                            "a match of {name} may have {longest} bytes; a filter holds back {FILTER_LIMIT}",
                            name = name.value
                        );
                        self.refuse(at, why);
                    }
                    Some(None) => {
                        let why = format!(
                            "a match of {} may have any length; a filter holds back {FILTER_LIMIT} bytes",
                            name.value
                        );
                        self.refuse(at, why);
                    }
                    Some(Some(_)) | None => {}
                },
            }
        }
    }

    fn canary(&mut self, route: &Placed<Route>, canary: &Lined<Canary>) {
        let at = route.line(canary.line);
        let versions = |wanted: &Name| {
            route.targets.iter().any(|share| match &share.target {
                Target::Local { model, .. } => {
                    let model = self.catalog.models.get(model);
                    model.is_some_and(|model| model.versions.iter().any(|version| version.id == *wanted))
                }
                Target::Upstream { .. } => false,
            })
        };
        let missing: Vec<&Name> = [&canary.from, &canary.to].into_iter().filter(|version| !versions(version)).collect();
        for version in missing {
            self.refuse(at.clone(), format!("no target of the route has a version {version}"));
        }
        let rising = canary.steps.windows(2).all(|pair| pair[0] < pair[1]);
        let percent = canary.steps.iter().all(|step| (1..=100).contains(step));
        if canary.steps.is_empty() || !rising || !percent {
            self.refuse(at, "steps are percentages from 1 to 100, each higher than the one before");
        }
    }
}

fn external(catalog: &Catalog, upstream: &Upstream, model: &str) -> Result<(), String> {
    let name = &upstream.name;
    if !upstream.models.is_empty() && upstream.models.iter().all(|known| known.name.as_str() != model) {
        let known: Vec<&str> = upstream.models.iter().map(|known| known.name.as_str()).collect();
        return Err(format!("upstream {name} has no model {model}; it has: {}", known.join(", ")));
    }
    if catalog.price(upstream, model).is_none() {
        return Err(format!("{model} of {name} has no price: give one to the model or to the upstream"));
    }
    Ok(())
}
