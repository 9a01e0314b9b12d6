//! What the cluster's own workers serve, and how far they are behind.

use penstock_cluster::catalog::Name;

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The model.
    pub model: Name,
    /// Its version, where it has one.
    pub version: Option<Name>,
    /// How long a new request waits for its first token, as predicted.
    pub wait_ms: u64,
}

/// All that is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    /// One for each model and version.
    pub served: Vec<Served>,
}

impl Load {
    /// The least predicted wait for a model, in any version where `version` is None; None where nobody serves it.
    pub fn wait_ms(&self, model: &Name, version: Option<&Name>) -> Option<u64> {
        let fits = |served: &&Served| {
            served.model == *model && version.is_none_or(|version| served.version.as_ref() == Some(version))
        };
        self.served.iter().filter(fits).map(|served| served.wait_ms).min()
    }
}
