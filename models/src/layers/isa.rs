//! The instruction sets that the processor kernels are compiled for.
//!
//! Every kernel computes each output value by the same sequence of fused multiply-adds, whatever
//! the width of the vectors, so that one input gives the same bits on every instruction set and
//! with every number of threads. A processor without fused multiply-add (older than 2013) gets
//! the same bits too, but slowly.

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// x86-64 with 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with 256-bit vectors and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the target offers by default (on aarch64 that is NEON).
    Portable,
}

impl Isa {
    /// The widest instruction set of this processor.
    pub(crate) fn detect() -> Self {
        *Self::available().first().expect("Portable is always there")
    }

    /// All instruction sets of this processor, widest first.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("fma")
            {
                return &[Self::Avx512, Self::Avx2, Self::Portable];
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return &[Self::Avx2, Self::Portable];
            }
        }
        &[Self::Portable]
    }
}

/// Compiles a function once for each instruction set and calls the one that this processor has.
///
/// The body must be plain arithmetic on slices, which the compiler turns into vectors; a sum over
/// elements has to be spelt with a fixed number of partial sums, since the compiler never
/// reorders additions.
macro_rules! for_each_isa {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
                fn avx512($($argument: $kind),*) $(-> $result)? {
                    portable($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $kind),*) $(-> $result)? {
                    portable($($argument),*)
                }
                match $crate::layers::isa::Isa::detect() {
                    // SAFETY: `detect` found the features on this processor.
                    $crate::layers::isa::Isa::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::layers::isa::Isa::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::layers::isa::Isa::Portable => {}
                }
            }
            portable($($argument),*)
        }
    };
}
pub(crate) use for_each_isa;
