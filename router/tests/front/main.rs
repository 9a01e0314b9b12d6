//! The router over real sockets, in front of workers that say what a test tells them to.

#![expect(clippy::unwrap_used, reason = "a test fails where something is not as it must be")]

mod admin;
mod anthropic;
mod bad_input;
mod budgets;
mod filter;
mod grpc;
mod limits;
mod openai;
mod operators;
mod ops;
mod responses;
mod rules;
mod spec;
mod sse;
mod structure;
mod support;
mod tools;
mod workers;
