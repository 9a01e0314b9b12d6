//! The one gate between data and a destination.

use std::fmt;

use penstock_cluster::catalog::{self, At, Catalog};
use penstock_proto::{DataClass, ErrorCode};

use crate::request::Failure;

/// Whether anything may leave the house, whatever the catalogue says: `--no-egress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// What the catalogue allows.
    Allowed,
    /// Nothing.
    Forbidden,
}

/// What keeps a target from being reached by anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Open,
    NoEgress,
    Unknown,
}

/// A target with its ceiling, as the catalogue has it. Only [`Target::resolve`] makes one: a ceiling cannot be invented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: catalog::Target,
    ceiling: DataClass,
    at: Option<At>,
    reach: Reach,
}

impl Target {
    /// Looks a target up. One that the catalogue does not have can be reached by nothing, except that where the catalogue
    /// has no tenants (`penstock up` as it comes) every model of the cluster's own may be reached by all.
    pub fn resolve(catalog: &Catalog, name: &catalog::Target, egress: Egress) -> Self {
        let found = catalog.ceiling(name);
        let (external, name) = (matches!(name, catalog::Target::Upstream { .. }), name.clone());
        match (found, external, egress) {
            (Some((ceiling, at)), true, Egress::Forbidden) => {
                Self { name, ceiling, at: Some(at), reach: Reach::NoEgress }
            }
            (Some((ceiling, at)), _, _) => Self { name, ceiling, at: Some(at), reach: Reach::Open },
            (None, false, _) if catalog.tenants.is_empty() => {
                Self { name, ceiling: DataClass::Restricted, at: None, reach: Reach::Open }
            }
            (None, _, _) => Self { name, ceiling: DataClass::Public, at: None, reach: Reach::Unknown },
        }
    }

    /// Which it is.
    pub fn name(&self) -> &catalog::Target {
        &self.name
    }

    /// The model of it, without where that is.
    pub fn model(&self) -> &str {
        match &self.name {
            catalog::Target::Local { model, .. } => model.as_str(),
            catalog::Target::Upstream { model, .. } => model.as_str(),
        }
    }

    /// The highest class that may reach it.
    pub fn ceiling(&self) -> DataClass {
        self.ceiling
    }

    /// Where the catalogue sets its ceiling; None for a model that the catalogue does not name.
    pub fn at(&self) -> Option<&At> {
        self.at.as_ref()
    }
}

impl fmt::Display for Target {
    /// As `x-penstock-target` has it: `local/MODEL@VERSION` or `UPSTREAM/MODEL`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            catalog::Target::Upstream { upstream, model } => write!(f, "{upstream}/{model}"),
            catalog::Target::Local { model, version, adapter } => {
                write!(f, "local/{model}")?;
                version.iter().try_for_each(|version| write!(f, "@{version}"))?;
                adapter.iter().try_for_each(|adapter| write!(f, ":{adapter}"))
            }
        }
    }
}

/// A target that data of a class may be sent to. Whatever calls a target takes one of these, and only [`authorise`] makes
/// them:
///
/// ```compile_fail,E0451
/// use penstock_proto::DataClass;
/// use penstock_router::policy::{Authorised, Target};
///
/// fn forge(target: Target) -> Authorised {
///     Authorised { class: DataClass::Restricted, target }
/// }
/// ```
///
/// Nor can a target be made that nobody looked up:
///
/// ```compile_fail,E0451
/// use penstock_router::policy::Target;
///
/// fn lift(target: Target) -> Target {
///     Target { ceiling: penstock_proto::DataClass::Restricted, ..target }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorised {
    class: DataClass,
    target: Target,
}

impl Authorised {
    /// Where the data may go.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The class of the data that may go there.
    pub fn class(&self) -> DataClass {
        self.class
    }

    /// Holds what is about to be sent against what was allowed: data of a class, to a place. A difference is a bug, and
    /// nothing is sent.
    pub(crate) fn covers(
        &self,
        class: DataClass,
        is_place: impl FnOnce(&catalog::Target) -> bool,
    ) -> Result<Covered, Failure> {
        if class <= self.class && is_place(&self.target.name) {
            return Ok(Covered(()));
        }
        tracing::error!(target = %self.target, allowed = %self.class, %class, "a call was not covered by its permission");
        Err(Failure::new(ErrorCode::Internal, "the call was not covered by its permission"))
    }
}

/// The gate's word for one call, without which nothing is written to a worker or an upstream. Only
/// [`Authorised::covers`] gives it.
#[derive(Debug)]
pub(crate) struct Covered(());

/// Why a target is not called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The data is too sensitive.
    #[error("class {class} is above its ceiling, {ceiling}")]
    Ceiling {
        /// The data's class.
        class: DataClass,
        /// The highest that may reach it.
        ceiling: DataClass,
    },
    /// Nothing may leave.
    #[error("nothing may leave: --no-egress")]
    NoEgress,
    /// The catalogue does not have it.
    #[error("the catalogue does not have it")]
    Unknown,
    /// The tenant may not use it.
    #[error("the tenant may not use it")]
    NotAllowed,
    /// It failed too often just now.
    #[error("it failed too often just now")]
    Broken,
    /// No worker serves it now.
    #[error("no worker serves it now")]
    NotServed,
    /// The tenant's budget does not cover it.
    #[error("the tenant's budget does not cover it")]
    Budget,
}

/// Says whether data of a class may go to a target.
///
/// ```
/// use penstock_proto::DataClass;
/// use penstock_router::policy::{Authorised, Refusal, Target, authorise};
///
/// fn call(target: &Authorised) -> String {
///     format!("to {}", target.target())
/// }
///
/// fn send(class: DataClass, target: &Target) -> Result<String, Refusal> {
///     Ok(call(&authorise(class, target)?))
/// }
/// ```
///
/// # Errors
///
/// [`Refusal::Ceiling`], [`Refusal::NoEgress`] or [`Refusal::Unknown`].
pub fn authorise(class: DataClass, target: &Target) -> Result<Authorised, Refusal> {
    match target.reach {
        Reach::Unknown => Err(Refusal::Unknown),
        Reach::NoEgress => Err(Refusal::NoEgress),
        Reach::Open if class > target.ceiling => Err(Refusal::Ceiling { class, ceiling: target.ceiling }),
        Reach::Open => Ok(Authorised { class, target: target.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use penstock_cluster::catalog::Source;

    use super::*;

    #[test]
    fn a_call_is_covered_up_to_its_class_and_nowhere_else() {
        let text = "models: [{name: ours}]\n".to_owned();
        let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }]).unwrap();
        let model = catalog.models.keys().next().unwrap().clone();
        let ours = catalog::Target::Local { model, version: None, adapter: None };
        let target = Target::resolve(&catalog, &ours, Egress::Allowed);
        let to = authorise(DataClass::Internal, &target).unwrap();
        let covers = |class, place: bool| to.covers(class, |_| place).is_ok();
        assert!(covers(DataClass::Public, true) && covers(DataClass::Internal, true));
        assert!(!covers(DataClass::Confidential, true) && !covers(DataClass::Public, false));
        to.covers(DataClass::Public, |place| *place == ours).unwrap();
    }
}
