//! Instruction sets: which this machine has, and running a kernel compiled for one of them.

use std::fmt;

use crate::config;
use crate::lanes::{Lanes, Scalar};

/// An instruction set that kernels are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every machine runs.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// These and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// A computation over [`Lanes`], to be compiled once an instruction set.
pub(crate) trait Kernel {
    /// Must be `#[inline(always)]`, as must be all that it calls with `L`: that puts it into a function with the
    /// features of `L` enabled.
    fn run<L: Lanes>(self);
}

impl Isa {
    /// The fastest that this machine has, or the one that `PENSTOCK_ISA` names.
    ///
    /// # Panics
    /// Where `PENSTOCK_ISA` names none that this machine has: a test of one set must not pass with another.
    pub fn detect() -> Self {
        let available = Self::available();
        match config::isa() {
            Some(name) => {
                let found = available.iter().find(|isa| isa.to_string() == name);
                *found.unwrap_or_else(|| {
                    let names: Vec<String> = available.iter().map(Self::to_string).collect();
                    panic!("PENSTOCK_ISA={name}: unset it, or name one that this machine has: {}", names.join(", "))
                })
            }
            None => available.last().copied().unwrap_or(Self::Scalar),
        }
    }

    /// Those that this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                found.push(Self::Avx2);
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
                    found.push(Self::Avx512);
                    if has!("avx512vnni") {
                        found.push(Self::Avx512Vnni);
                    }
                }
            }
        }
        found
    }

    /// Runs `kernel` with this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Scalar => run_scalar(kernel),
            // SAFETY: a `Cpu` takes only an `Isa` that `available` found on this machine.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { run_avx512_vnni(kernel) },
        }
    }
}

#[inline(never)]
pub(crate) fn run_scalar<K: Kernel>(kernel: K) {
    kernel.run::<Scalar>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(crate) fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<crate::lanes::Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
#[inline(never)]
pub(crate) fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<crate::lanes::Avx512<false>>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline(never)]
pub(crate) fn run_avx512_vnni<K: Kernel>(kernel: K) {
    kernel.run::<crate::lanes::Avx512<true>>();
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512vnni",
        })
    }
}
