//! The ledger from outside: on a file and on a real PostgreSQL, with processes that are killed and databases that fail.

#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

mod crash;
mod postgres;
mod support;
mod tamper;
mod trouble;
mod uses;
