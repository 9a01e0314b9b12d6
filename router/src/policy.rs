//! Where a request may go: [`decide`] turns what is known of it into the targets to try, in order, and says of every
//! other why not. It is pure and total: no clock, no IO, an answer for every input. The same function serves traffic,
//! explains and replays.
//!
//! [`authorise`] is the one gate between data and a destination: a target can be called only with what it returns.

mod explain;
mod gate;
mod load;
mod names;
mod plan;
mod purse;

use penstock_cluster::catalog::{self, At, Catalog, Facts, Name, Number, Price};
use serde::Serialize;

use crate::class::Classed;

pub use explain::{Explained, Explanation, explain};
pub(crate) use gate::Covered;
pub use gate::{Authorised, Egress, Refusal, Target, authorise};
pub use load::{Load, Served};
pub use names::{Asked, allowed, resolve};
pub use purse::Purse;

use plan::Stop;

/// Buckets that traffic is split into.
pub const BUCKETS: u16 = 10_000;

/// A request's place in the split of the traffic: hash(route, session) mod 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bucket(u16);

impl Bucket {
    /// The bucket of a hash.
    pub fn of(hash: u64) -> Self {
        Self(u16::try_from(hash % u64::from(BUCKETS)).expect("a remainder of 10,000 is below it"))
    }

    /// From 0 to 9,999.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether it is in a sample of the traffic that has nothing to do with the split: another order of the buckets.
    fn is_sampled(self, share: f64) -> bool {
        // 7919 has no factor in common with 10,000, so every bucket has its own place.
        let shuffled = u32::from(self.0) * 7919 % u32::from(BUCKETS);
        f64::from(shuffled) < share * f64::from(BUCKETS)
    }
}

/// What a request is like, beside its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape<'a> {
    /// Bytes of all that the model is to read.
    pub prompt_bytes: u64,
    /// How many messages.
    pub messages: u64,
    /// The client's word; empty where it gave none.
    pub task: &'a str,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// How many tools the model may call.
    pub tools: u64,
}

/// When a request came, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// 0 to 23.
    pub hour: u8,
    /// 1, a Monday, to 7.
    pub weekday: u8,
}

/// Whether a route's overflow is in use: it begins above one wait and ends below another, so that it does not flutter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tide {
    /// The route's own targets keep up.
    #[default]
    Low,
    /// They are behind.
    High,
}

impl Tide {
    fn after(self, wait_ms: u64, overflow: &catalog::Overflow) -> Self {
        if wait_ms > overflow.above_wait_ms {
            Self::High
        } else if wait_ms < overflow.below_wait_ms {
            Self::Low
        } else {
            self
        }
    }
}

/// Everything that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The catalogue in force.
    pub catalog: &'a Catalog,
    /// Its version; None where nothing was ever applied.
    pub version: Option<Number>,
    /// Who asks.
    pub tenant: &'a str,
    /// The request's class and what raised it.
    pub class: &'a Classed,
    /// What the client gave as `model`.
    pub asked: &'a str,
    /// What the request is like.
    pub shape: Shape<'a>,
    /// What the cluster's own workers serve, and how far they are behind.
    pub load: &'a Load,
    /// Its place in the split.
    pub bucket: Bucket,
    /// When it came.
    pub time: Time,
    /// Whether anything may leave.
    pub egress: Egress,
    /// Upstreams that failed too often just now.
    pub broken: &'a [Name],
    /// What the tenant has left for external calls.
    pub purse: Purse,
    /// What the last decision for the route left.
    pub tide: Tide,
}

/// Which part of a route named a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The client itself.
    Direct,
    /// A rule that holds.
    Rule,
    /// The split of the traffic.
    Split,
    /// Overflow, in use.
    Overflow,
    /// The fallback.
    Fallback,
    /// A copy, whose answer nobody sees.
    Shadow,
}

/// What a decision says of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be called.
    Allowed(Authorised),
    /// It may not.
    Refused(Refusal),
}

/// A target that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// The target, its ceiling and where that stands.
    pub target: Target,
    /// What named it.
    pub stage: Stage,
    /// Where it was named; None where the client did.
    pub at: Option<At>,
    /// USD per million tokens; None for the cluster's own.
    pub price: Option<Price>,
    /// Whether it may be called.
    pub verdict: Verdict,
}

/// Why the first targets are those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arm {
    /// The client named a target, or nothing that it may.
    Direct,
    /// The first rule that holds.
    Rule {
        /// Where it stands.
        at: At,
        /// The rule.
        when: String,
    },
    /// The split of the traffic, by the request's bucket.
    Split {
        /// The bucket.
        bucket: Bucket,
    },
    /// The route's own targets are behind.
    Overflow {
        /// Their least predicted wait.
        wait_ms: u64,
    },
}

/// Why nothing may serve a request: of several reasons the one that passes soonest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is nothing of this name that the tenant may use.
    Name,
    /// What could serve it does not just now.
    Unavailable,
    /// The budget is spent.
    Budget,
    /// Its class is above every ceiling.
    Class,
    /// Nothing may leave.
    Egress,
}

/// Where a request may go, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The catalogue's version.
    pub version: Option<Number>,
    /// Who asked.
    pub tenant: String,
    /// The class and what raised it.
    pub class: Classed,
    /// What was asked for, and what it means.
    pub asked: Asked,
    /// Why the first targets are those.
    pub arm: Arm,
    /// The targets to try, in order, and between them those that were passed over.
    pub considered: Vec<Considered>,
    /// Where copies go.
    pub shadows: Vec<Considered>,
    /// Rules that could not be evaluated, and so did not hold.
    pub failed_rules: Vec<At>,
    /// What the next decision for the route is to be given.
    pub tide: Tide,
}

impl Decision {
    /// What may be called, in the order to try it.
    pub fn candidates(&self) -> impl Iterator<Item = &Authorised> {
        self.considered.iter().filter_map(Considered::authorised)
    }

    /// What was passed over, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&Target, &Refusal)> {
        self.considered.iter().filter_map(|considered| match &considered.verdict {
            Verdict::Allowed(_) => None,
            Verdict::Refused(refusal) => Some((&considered.target, refusal)),
        })
    }

    /// Why nothing may serve the request; None where something may.
    pub fn denied(&self) -> Option<Denied> {
        if self.candidates().next().is_some() {
            return None;
        }
        let is = |wanted: fn(&Refusal) -> bool| self.refused().any(|(_, refusal)| wanted(refusal));
        let denied = match &self.asked {
            Asked::Unknown(_) | Asked::NotAllowed(_) => Denied::Name,
            Asked::Route(_) | Asked::Target(_) if is(|it| matches!(it, Refusal::NotServed | Refusal::Broken)) => {
                Denied::Unavailable
            }
            Asked::Route(_) | Asked::Target(_) if is(|it| matches!(it, Refusal::Budget)) => Denied::Budget,
            Asked::Route(_) | Asked::Target(_) if is(|it| matches!(it, Refusal::Ceiling { .. })) => Denied::Class,
            Asked::Route(_) | Asked::Target(_) if is(|it| matches!(it, Refusal::NoEgress)) => Denied::Egress,
            Asked::Route(_) | Asked::Target(_) => Denied::Name,
        };
        Some(denied)
    }

    /// Where copies may go.
    pub fn copies(&self) -> impl Iterator<Item = &Authorised> {
        self.shadows.iter().filter_map(Considered::authorised)
    }
}

impl Considered {
    fn authorised(&self) -> Option<&Authorised> {
        match &self.verdict {
            Verdict::Allowed(authorised) => Some(authorised),
            Verdict::Refused(_) => None,
        }
    }

    /// What orders targets by cost: the price of three tokens read for one written; one's own cost nothing more.
    fn cost(&self) -> u64 {
        self.price.map_or(0, |price| price.input.nanos().saturating_mul(3).saturating_add(price.output.nanos()))
    }
}

/// Decides where a request may go.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let asked = names::resolve(inputs.catalog, inputs.tenant, inputs.asked);
    let mut decision = Decision {
        version: inputs.version,
        tenant: inputs.tenant.to_owned(),
        class: inputs.class.clone(),
        arm: Arm::Direct,
        considered: Vec::new(),
        shadows: Vec::new(),
        failed_rules: Vec::new(),
        tide: inputs.tide,
        asked,
    };
    match &decision.asked {
        Asked::Route(name) => {
            if let Some(route) = inputs.catalog.routes.get(name) {
                plan::route(inputs, route, &mut decision);
            }
        }
        Asked::Target(target) => {
            let stop = Stop { target, stage: Stage::Direct, at: None };
            let considered = consider(inputs, &stop);
            decision.considered.push(considered);
        }
        Asked::NotAllowed(_) | Asked::Unknown(_) => {}
    }
    purse::refuse(inputs.purse, &mut decision.considered);
    decision
}

/// Judges one target. The class is asked first, so that a refusal for it is always told.
fn consider(inputs: &Inputs<'_>, stop: &Stop<'_>) -> Considered {
    let target = Target::resolve(inputs.catalog, stop.target, inputs.egress);
    let price = match stop.target {
        catalog::Target::Local { .. } => None,
        catalog::Target::Upstream { upstream, model } => {
            let upstream = inputs.catalog.upstreams.get(upstream);
            upstream.and_then(|upstream| inputs.catalog.price(upstream, model.as_str()))
        }
    };
    let verdict = match authorise(inputs.class.class(), &target) {
        Err(refusal) => Verdict::Refused(refusal),
        Ok(authorised) => match usable(inputs, stop.target, price) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(()) => Verdict::Allowed(authorised),
        },
    };
    Considered { target, stage: stop.stage, at: stop.at.clone(), price, verdict }
}

/// Whether a target that the class may reach can be used now, and by this tenant.
fn usable(inputs: &Inputs<'_>, target: &catalog::Target, price: Option<Price>) -> Result<(), Refusal> {
    match target {
        catalog::Target::Upstream { upstream, .. } if inputs.broken.contains(upstream) => Err(Refusal::Broken),
        catalog::Target::Upstream { .. } => purse::affordable(inputs, price),
        catalog::Target::Local { model, version, adapter } => {
            if let Some(adapter) = adapter
                && !names::may_use_adapter(inputs.catalog, inputs.tenant, adapter)
            {
                return Err(Refusal::NotAllowed);
            }
            inputs.load.wait_ms(model, version.as_ref()).map(|_| ()).ok_or(Refusal::NotServed)
        }
    }
}

fn facts<'a>(inputs: &Inputs<'a>, wait_ms: Option<u64>) -> Facts<'a> {
    let Shape { prompt_bytes, messages, task, stream, tools } = inputs.shape;
    Facts {
        prompt_bytes,
        messages,
        task,
        stream,
        tools,
        tenant: inputs.tenant,
        class: inputs.class.class(),
        wait_ms: wait_ms.unwrap_or(u64::MAX),
        served: wait_ms.is_some(),
        hour: inputs.time.hour,
        weekday: inputs.time.weekday,
    }
}

#[cfg(test)]
mod tests;
