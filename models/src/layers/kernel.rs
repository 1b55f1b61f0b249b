//! The innermost loop of every matrix product and convolution on the processor.
//!
//! A kernel multiplies a few rows of the left side by one *panel*: `width` neighbouring columns of
//! the right side, stored row by row. The left rows are given by pointers, one for each row and
//! *tap*; a matrix product has one tap, a 3×3 convolution has nine, each pointing at the channels
//! of one neighbouring pixel. So a convolution needs no im2col copy.
//!
//! Invariant: an output value is a chain of fused multiply-adds in the order tap, depth, starting
//! from zero, whatever the instruction set and the number of rows, so the bits never differ.

use super::isa::Isa;

/// The most rows a kernel takes at once on any instruction set.
pub(super) const MAX_ROWS: usize = 12;
/// The widest panel of any instruction set.
pub(super) const MAX_WIDTH: usize = 32;

/// The row pointers of one tap; entries from the row count on are not read.
pub(super) type TapRows = [*const f32; MAX_ROWS];

/// Columns in a panel.
pub(super) const fn panel_width(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 32,
        _ => 16,
    }
}

/// Rows that a kernel should get at once: as many as the registers hold.
pub(super) const fn tile_rows(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 12,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// Multiplies `rows` rows by a panel into `tile`, row by row, `panel_width` values each.
///
/// # Safety
/// The processor must have `isa`; `rows` must be within 1 ..= `tile_rows(isa)`; each of the first
/// `rows` pointers of each tap must be readable for `depth` values; `panel` must hold
/// `taps.len() * depth * panel_width(isa)` values.
pub(super) unsafe fn multiply_tile(
    isa: Isa,
    rows: usize,
    taps: &[TapRows],
    depth: usize,
    panel: &[f32],
    tile: &mut [f32; MAX_ROWS * MAX_WIDTH],
) {
    debug_assert!(panel.len() >= taps.len() * depth * panel_width(isa));
    let (panel, tile) = (panel.as_ptr(), tile.as_mut_ptr());
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => match rows {
                1 => x86::avx512::<1>(taps, depth, panel, tile),
                2 => x86::avx512::<2>(taps, depth, panel, tile),
                3 => x86::avx512::<3>(taps, depth, panel, tile),
                4 => x86::avx512::<4>(taps, depth, panel, tile),
                5 => x86::avx512::<5>(taps, depth, panel, tile),
                6 => x86::avx512::<6>(taps, depth, panel, tile),
                7 => x86::avx512::<7>(taps, depth, panel, tile),
                8 => x86::avx512::<8>(taps, depth, panel, tile),
                9 => x86::avx512::<9>(taps, depth, panel, tile),
                10 => x86::avx512::<10>(taps, depth, panel, tile),
                11 => x86::avx512::<11>(taps, depth, panel, tile),
                _ => x86::avx512::<12>(taps, depth, panel, tile),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => match rows {
                1 => x86::avx2::<1>(taps, depth, panel, tile),
                2 => x86::avx2::<2>(taps, depth, panel, tile),
                3 => x86::avx2::<3>(taps, depth, panel, tile),
                4 => x86::avx2::<4>(taps, depth, panel, tile),
                5 => x86::avx2::<5>(taps, depth, panel, tile),
                _ => x86::avx2::<6>(taps, depth, panel, tile),
            },
            Isa::Portable => match rows {
                1 => portable::<1>(taps, depth, panel, tile),
                2 => portable::<2>(taps, depth, panel, tile),
                3 => portable::<3>(taps, depth, panel, tile),
                _ => portable::<4>(taps, depth, panel, tile),
            },
        }
    }
}

/// # Safety
/// See [`multiply_tile`].
unsafe fn portable<const ROWS: usize>(taps: &[TapRows], depth: usize, mut panel: *const f32, tile: *mut f32) {
    const WIDTH: usize = panel_width(Isa::Portable);
    let mut sums = [[0.0f32; WIDTH]; ROWS];
    for rows in taps {
        for k in 0..depth {
            // SAFETY: the panel holds `WIDTH` values for each tap and depth, each row `depth`.
            unsafe {
                let weights = &*panel.cast::<[f32; WIDTH]>();
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let value = *row.add(k);
                    for (sum, weight) in sum.iter_mut().zip(weights) {
                        *sum = value.mul_add(*weight, *sum);
                    }
                }
                panel = panel.add(WIDTH);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        // SAFETY: the tile holds `MAX_ROWS * MAX_WIDTH` values.
        unsafe { tile.add(r * WIDTH).cast::<[f32; WIDTH]>().write(*sum) };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::TapRows;

    macro_rules! kernel {
        ($name:ident, $features:literal, $lanes:literal, $zero:ident, $splat:ident, $load:ident, $fma:ident, $store:ident) => {
            /// # Safety
            /// See `multiply_tile`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const ROWS: usize>(
                taps: &[TapRows],
                depth: usize,
                mut panel: *const f32,
                tile: *mut f32,
            ) {
                let mut sums = [[$zero(); 2]; ROWS];
                for rows in taps {
                    for k in 0..depth {
                        // SAFETY: the panel holds two vectors for each tap and depth, each row
                        // `depth` values.
                        unsafe {
                            let left = $load(panel);
                            let right = $load(panel.add($lanes));
                            panel = panel.add(2 * $lanes);
                            for (sum, row) in sums.iter_mut().zip(rows) {
                                let value = $splat(*row.add(k));
                                sum[0] = $fma(value, left, sum[0]);
                                sum[1] = $fma(value, right, sum[1]);
                            }
                        }
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    // SAFETY: the tile holds two vectors for each row.
                    unsafe {
                        $store(tile.add(r * 2 * $lanes), sum[0]);
                        $store(tile.add(r * 2 * $lanes + $lanes), sum[1]);
                    }
                }
            }
        };
    }

    kernel!(
        avx512,
        "avx512f",
        16,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_fmadd_ps,
        _mm512_storeu_ps
    );
    kernel!(
        avx2,
        "avx2,fma",
        8,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_fmadd_ps,
        _mm256_storeu_ps
    );
}
