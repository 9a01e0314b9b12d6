//! The order in which a route's targets are tried: the first rule that holds or else the split, before it overflow while
//! that is in use, after it the fallback. A target that was named already is not named again.

use penstock_cluster::catalog::{self, At, Lined, Order, Overflow, Placed, Route, Share};

use super::{Arm, BUCKETS, Bucket, Decision, Inputs, Stage, Tide, Verdict, consider, facts};

/// A target that a route names.
#[derive(Debug, Clone)]
pub(super) struct Stop<'a> {
    pub(super) target: &'a catalog::Target,
    pub(super) stage: Stage,
    pub(super) at: Option<At>,
}

/// Considers everything that a route names.
pub(super) fn route(inputs: &Inputs<'_>, route: &Placed<Route>, decision: &mut Decision) {
    let wait_ms = wait_ms(inputs, route);
    let mut stops: Vec<Stop<'_>> = Vec::new();
    match rule(inputs, route, wait_ms, decision) {
        Some((arm, targets)) => {
            decision.arm = arm;
            add(&mut stops, route, split(targets, inputs.bucket), Stage::Rule);
        }
        None => {
            decision.arm = Arm::Split { bucket: inputs.bucket };
            if let Some(overflow) = overflow(inputs, route, wait_ms, decision) {
                add(&mut stops, route, overflow.targets.iter(), Stage::Overflow);
            }
            add(&mut stops, route, split(&route.targets, inputs.bucket), Stage::Split);
        }
    }
    add(&mut stops, route, route.fallback.iter(), Stage::Fallback);
    decision.considered = stops.iter().map(|stop| consider(inputs, stop)).collect();
    match route.order {
        Order::Listed => {}
        Order::Cheapest => decision.considered.sort_by_key(|considered| match considered.verdict {
            Verdict::Allowed(_) => (false, considered.cost()),
            Verdict::Refused(_) => (true, 0),
        }),
    }
    if let Some(shadow) = &route.shadow
        && inputs.bucket.is_sampled(shadow.sample.get())
    {
        let mut copies = Vec::new();
        add(&mut copies, route, shadow.targets.iter(), Stage::Shadow);
        decision.shadows = copies.iter().map(|stop| consider(inputs, stop)).collect();
    }
}

/// The least predicted wait among the route's own local targets; None where none of them is served.
fn wait_ms(inputs: &Inputs<'_>, route: &Route) -> Option<u64> {
    let waits = route.targets.iter().filter_map(|share| match &share.target {
        catalog::Target::Local { model, version, .. } => inputs.load.wait_ms(model, version.as_ref()),
        catalog::Target::Upstream { .. } => None,
    });
    waits.min()
}

fn rule<'a>(
    inputs: &Inputs<'_>,
    route: &'a Placed<Route>,
    wait_ms: Option<u64>,
    decision: &mut Decision,
) -> Option<(Arm, &'a [Lined<Share>])> {
    if route.rules.is_empty() {
        return None;
    }
    let facts = facts(inputs, wait_ms);
    for rule in &route.rules {
        let at = route.line(rule.line);
        match rule.when.holds(&facts) {
            Ok(true) => return Some((Arm::Rule { at, when: rule.when.source().to_owned() }, &rule.targets)),
            Ok(false) => {}
            Err(_) => decision.failed_rules.push(at),
        }
    }
    None
}

/// The route's overflow, where it is in use for this request.
fn overflow<'a>(
    inputs: &Inputs<'_>,
    route: &'a Route,
    wait_ms: Option<u64>,
    decision: &mut Decision,
) -> Option<&'a Overflow> {
    let overflow = &route.overflow.as_ref()?.value;
    // Where nobody serves the targets, the wait has no end.
    let wait_ms = wait_ms.unwrap_or(u64::MAX);
    decision.tide = inputs.tide.after(wait_ms, overflow);
    match decision.tide {
        Tide::Low => None,
        Tide::High => {
            decision.arm = Arm::Overflow { wait_ms };
            Some(overflow)
        }
    }
}

/// A list of targets in the order to try: where it has weights, the one whose part of the traffic the bucket is in comes
/// first, and one without weight does not come at all.
fn split(shares: &[Lined<Share>], bucket: Bucket) -> impl Iterator<Item = &Lined<Share>> {
    let weights = || shares.iter().map(|share| u64::from(share.weight.unwrap_or(0)));
    let total: u64 = weights().sum();
    // From 0 to below the total, in proportion.
    let place = u64::from(bucket.get()) * total / u64::from(BUCKETS);
    let ends = weights().scan(0, |end, weight| {
        *end += weight;
        Some(*end)
    });
    let chosen = ends.take_while(|end| *end <= place).count();
    let first = shares.get(chosen).filter(|_| total > 0);
    let others = shares.iter().enumerate().filter(move |(at, share)| match first {
        Some(_) => *at != chosen && share.weight != Some(0),
        None => share.weight != Some(0),
    });
    first.into_iter().chain(others.map(|(_, share)| share))
}

fn add<'a>(
    stops: &mut Vec<Stop<'a>>,
    route: &Placed<Route>,
    shares: impl Iterator<Item = &'a Lined<Share>>,
    stage: Stage,
) {
    for share in shares {
        if stops.iter().all(|stop| *stop.target != share.target) {
            stops.push(Stop { target: &share.value.target, stage, at: Some(route.line(share.line)) });
        }
    }
}
