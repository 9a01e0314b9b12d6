//! Targets that no request can ever reach, because all who may ask for them have a class above their ceiling.

use penstock_proto::DataClass;

use super::super::{Catalog, Lined, Placed, Problem, Route, Share, Tenant};

pub(super) fn warnings(catalog: &Catalog) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for route in catalog.routes.values() {
        let may = |tenant: &&Placed<Tenant>| tenant.models.iter().any(|glob| glob.matches(route.name.as_str()));
        let least = catalog.tenants.values().filter(may).map(|tenant| tenant.class).min();
        let least = if catalog.tenants.is_empty() { Some(DataClass::Internal) } else { least };
        match least {
            None => {
                let why = format!("no tenant may ask for route {}", route.name);
                warnings.push(Problem { at: route.at.clone(), why });
            }
            Some(least) => warnings.extend(unreachable(catalog, route, least)),
        }
    }
    warnings
}

fn unreachable(catalog: &Catalog, route: &Placed<Route>, least: DataClass) -> impl Iterator<Item = Problem> {
    shares(route).filter_map(move |share| {
        let (ceiling, _) = catalog.ceiling(&share.target)?;
        let why = format!(
            "nothing can reach this: it takes at most {ceiling}, and all who may ask for {} are {least} or above",
            route.name
        );
        (ceiling < least).then(|| Problem { at: route.line(share.line), why })
    })
}

fn shares(route: &Route) -> impl Iterator<Item = &Lined<Share>> {
    let rules = route.rules.iter().flat_map(|rule| &rule.targets);
    let overflow = route.overflow.iter().flat_map(|overflow| &overflow.targets);
    let shadow = route.shadow.iter().flat_map(|shadow| &shadow.targets);
    route.targets.iter().chain(rules).chain(overflow).chain(&route.fallback).chain(shadow)
}
