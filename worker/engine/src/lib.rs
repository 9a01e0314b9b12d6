//! The engine: sequences in, tokens out, on a thread of its own. No network, no async runtime; channels only.

pub mod batch;
pub mod clock;
pub mod config;
mod door;
pub mod events;
pub mod grammar;
mod handle;
mod kv;
pub mod model;
pub mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
pub mod stats;
mod step;
pub mod weights;

pub use config::Config;
pub use events::{Event, Events, Failure, FinishReason, Finished};
pub use handle::{Engine, StartError, Submission, SubmitError, Tenant};
pub use kv::BlockCounts;
pub use sampler::{SamplingParams, TokenLogprob};
pub use sequence::Priority;
pub use stats::{Load, Stats};
