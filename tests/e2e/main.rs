//! End to end: the real program, the real model, real clients.

#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

#[path = "../support/up.rs"]
mod up;

mod bad_input;
mod bank;
mod catalog;
mod clients;
mod ledger;
mod life;
mod load;
mod models;
mod path;
