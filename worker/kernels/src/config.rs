//! What the environment may set of the kernels: the instruction set, for tests and for comparing paths.

/// The instruction set named by `PENSTOCK_ISA` (`scalar`, `avx2`, `avx512`, `avx512vnni`), if it is set.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs of the crate")]
pub(crate) fn isa() -> Option<String> {
    std::env::var("PENSTOCK_ISA").ok().filter(|name| !name.is_empty())
}
