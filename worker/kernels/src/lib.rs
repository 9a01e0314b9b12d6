//! CPU kernels and memory maps: the only crate with `unsafe` code. Functions on slices, safe outside.

#![allow(unsafe_code, reason = "this crate exists to hold it")]

pub mod attention;
pub mod codec;
mod config;
mod cpu;
mod format;
mod isa;
mod lanes;
mod map;
mod matrix;
mod rows;
mod shared;
mod softmax;
mod threads;

pub use cpu::Cpu;
pub use format::Format;
pub use isa::Isa;
pub use map::Mapped;
pub use matrix::{Error, Matrix};
pub use rows::{Input, Output};
pub use softmax::exponentials;
