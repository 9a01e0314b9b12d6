//! Clusters of real processes over a real etcd; their workers run the scripted stand-in.

#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

#[path = "../support/cluster.rs"]
mod cluster;

mod catalog;
mod etcd;
mod flood;
mod liar;
mod life;
mod operators;
mod spread;
mod tls;
