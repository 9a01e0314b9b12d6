//! What can go wrong with a store.

use std::path::PathBuf;

use super::{LeaseId, Revision};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or did not answer in time. A change may or may not have been made.
    #[error("the store is not available: {reason}")]
    Unavailable {
        /// What was tried and what came of it.
        reason: String,
    },
    /// The history that was asked for is gone: list anew and watch from there.
    #[error("the store's history up to revision {} was compacted", at.get())]
    Compacted {
        /// The last revision that is gone.
        at: Revision,
    },
    /// The lease has ended; its keys are gone.
    #[error("lease {:x} has ended", lease.get())]
    LeaseNotFound {
        /// Which.
        lease: LeaseId,
    },
    /// The store does not let us in: user, password, certificate or permission.
    #[error("the store refuses access: {reason}")]
    Denied {
        /// What it says.
        reason: String,
    },
    /// What was asked can never succeed.
    #[error("the store cannot take this: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The store answered something that makes no sense, or failed inside.
    #[error("the store failed: {reason}")]
    Failed {
        /// What it said.
        reason: String,
    },
    /// The data directory cannot be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The state on disk is not what was written there.
    #[error("{} is damaged: {reason}; move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process uses the data directory.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed by the caller.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Compacted { .. }
            | Self::LeaseNotFound { .. }
            | Self::Denied { .. }
            | Self::Invalid { .. }
            | Self::Failed { .. }
            | Self::Disk { .. }
            | Self::Corrupt { .. }
            | Self::InUse { .. } => false,
        }
    }
}
