//! End to end: the real program, the real model, real clients.

#[path = "../support/up.rs"]
mod up;

mod bad_input;
mod clients;
mod life;
mod load;
mod models;
mod path;
