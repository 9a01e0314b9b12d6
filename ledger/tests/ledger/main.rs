//! The ledger from outside: on a file and on a real PostgreSQL, with processes that are killed and databases that fail.

mod crash;
mod postgres;
mod support;
mod tamper;
mod trouble;
mod uses;
