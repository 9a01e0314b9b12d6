//! What the environment may set of the kernels: the instruction set, for tests and for comparing paths.

use crate::Isa;

/// The instruction set named by `PENSTOCK_ISA` (`scalar`, `avx2`, `avx512`), if it is set, known and present.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs of the crate")]
pub(crate) fn isa() -> Option<Isa> {
    let name = std::env::var("PENSTOCK_ISA").ok()?;
    Isa::available().into_iter().find(|isa| isa.to_string() == name)
}
