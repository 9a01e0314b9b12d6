//! A decision in words, for `explain` and for refusals: class, what raised it, each target with its ceiling and the line
//! that sets it. Never any of the request's text.

use std::fmt;

use penstock_cluster::catalog::{At, Number};
use penstock_proto::DataClass;
use serde::Serialize;

use super::{Arm, Asked, Considered, Decision, Refusal, Stage, Verdict};
use crate::class::Raised;

/// A decision as the command line shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The catalogue's version.
    pub version: Option<Number>,
    /// Who asked.
    pub tenant: String,
    /// For what.
    pub asked: String,
    /// The request's class.
    pub class: DataClass,
    /// What raised it to that.
    pub raised_by: Vec<Raised>,
    /// Why the first targets are those.
    pub arm: String,
    /// The targets, in the order they are tried.
    pub targets: Vec<Explained>,
    /// Where copies go.
    pub shadows: Vec<Explained>,
    /// Rules that could not be evaluated.
    pub failed_rules: Vec<At>,
}

/// A target and what was decided of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The target.
    pub target: String,
    /// What named it.
    pub stage: Stage,
    /// Where it was named.
    pub at: Option<At>,
    /// The highest class that may reach it.
    pub ceiling: DataClass,
    /// Where the catalogue says so.
    pub ceiling_at: Option<At>,
    /// Why it is not called; None where it may be.
    pub refused: Option<String>,
}

/// Explains a decision.
pub fn explain(decision: &Decision) -> Explanation {
    Explanation {
        version: decision.version,
        tenant: decision.tenant.clone(),
        asked: decision.asked.text(),
        class: decision.class.class(),
        raised_by: decision.class.raised_by().to_vec(),
        arm: arm(decision),
        targets: decision.considered.iter().map(explained).collect(),
        shadows: decision.shadows.iter().map(explained).collect(),
        failed_rules: decision.failed_rules.clone(),
    }
}

fn explained(considered: &Considered) -> Explained {
    let refused = match &considered.verdict {
        Verdict::Allowed(_) => None,
        Verdict::Refused(refusal) => Some(refusal),
    };
    Explained {
        target: considered.target.to_string(),
        stage: considered.stage,
        at: considered.at.clone(),
        ceiling: considered.target.ceiling(),
        ceiling_at: considered.target.at().cloned(),
        refused: refused.map(Refusal::to_string),
    }
}

fn arm(decision: &Decision) -> String {
    match (&decision.asked, &decision.arm) {
        (Asked::NotAllowed(_), _) => "the tenant may not ask for this".to_owned(),
        (Asked::Unknown(_), _) => "there is nothing of this name".to_owned(),
        (Asked::Route(_) | Asked::Target(_), arm) => match arm {
            Arm::Direct => "asked for directly".to_owned(),
            Arm::Rule { at, when } => format!("the rule at {at} holds: {when}"),
            Arm::Split { bucket } => format!("the split of the traffic, bucket {}", bucket.get()),
            Arm::Overflow { wait_ms: u64::MAX } => "overflow: no worker serves the route's own targets".to_owned(),
            Arm::Overflow { wait_ms } => format!("overflow: the route's own targets are {wait_ms} ms behind"),
        },
    }
}

impl Explanation {
    /// What a client is told where nothing may serve its request: class, raisers, and each target's ceiling and line.
    pub fn refusal(&self) -> String {
        let raised_by: Vec<String> = self.raised_by.iter().map(|raised| raised.by.to_string()).collect();
        let (class, asked, raised_by) = (self.class, &self.asked, raised_by.join(", "));
        let targets: Vec<String> =
            self.targets.iter().map(|target| target.to_string().trim_start().to_owned()).collect();
        match targets.as_slice() {
            [] => format!("{asked}: {}", self.arm),
            targets => format!("nothing may serve {asked} for class {class} (by {raised_by}): {}", targets.join("; ")),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, asked, class, arm, .. } = self;
        writeln!(f, "{tenant} asks for {asked}")?;
        if let Some(version) = self.version {
            writeln!(f, "catalogue: version {version}")?;
        }
        let raised_by: Vec<String> = self.raised_by.iter().map(|raised| raised.by.to_string()).collect();
        writeln!(f, "class: {class} (by {})", raised_by.join(", "))?;
        writeln!(f, "first: {arm}")?;
        self.targets.iter().try_for_each(|target| writeln!(f, "{target}"))?;
        self.shadows.iter().try_for_each(|target| writeln!(f, "{target}"))?;
        if self.targets.iter().all(|target| target.refused.is_some()) {
            writeln!(f, "nothing may serve this request")?;
        }
        self.failed_rules.iter().try_for_each(|at| writeln!(f, "the rule at {at} could not be evaluated"))
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.refused.as_deref().unwrap_or("may be called");
        let stage = match self.stage {
            Stage::Direct => "asked",
            Stage::Rule => "rule",
            Stage::Split => "split",
            Stage::Overflow => "overflow",
            Stage::Fallback => "fallback",
            Stage::Shadow => "shadow",
        };
        write!(f, "  {stage} {}: {verdict}; ceiling {}", self.target, self.ceiling)?;
        self.ceiling_at.iter().try_for_each(|at| write!(f, " ({at})"))
    }
}
