//! A worker: an engine behind gRPC. Model files, life cycle, metrics; no HTTP of clients, no text.

pub mod artifact;
pub mod config;
pub mod constraint;
#[cfg(test)]
mod fixture;
pub mod lifecycle;
pub mod metrics;
pub mod model;
pub mod progress;
pub mod quantise;
mod rpc;
mod scripted;
pub mod tokenizer;

pub use config::Config;
pub use lifecycle::{Observers, Parts, Stage, Worker};
pub use model::{Card, Inspection, Model};
