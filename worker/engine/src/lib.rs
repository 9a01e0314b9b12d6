//! The engine: sequences in, tokens out, on a thread of its own. No network, no async runtime; channels only.

pub mod batch;
pub mod model;
pub mod runner;
pub mod weights;
