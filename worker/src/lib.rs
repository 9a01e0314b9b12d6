//! A worker: an engine behind gRPC. Model files, life cycle, metrics; no HTTP of clients, no text.

pub mod artifact;
pub mod progress;
