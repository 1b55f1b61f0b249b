//! Matrix products on the processor: a right side packed once into panels, a left side given by
//! row pointers, and an epilogue that adds what would otherwise be a pass of its own.
//!
//! Invariant: threads share out whole output values, never the terms of one, so the result does
//! not depend on their number.

use std::ops::Range;

use rayon::prelude::*;

use super::activation::Activation;
use super::isa::Isa;
use super::kernel::{self, MAX_ROWS, MAX_WIDTH, TapRows};

/// Rows that one task takes: enough to use a panel many times while it is in the cache.
const TASK_ROWS: usize = 96;
/// Below this many multiply-adds a product is done before another thread would have woken up.
const PARALLEL_WORK: usize = 1 << 17;
/// Panels that one task takes at most, so that few rows are still shared out.
const TASK_PANELS: usize = 2;

/// One cache line, so that a panel's vectors never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The right side of a product, `[taps × depth, columns]`, packed into panels.
pub(crate) struct PackedMatrix {
    lines: Vec<Line>,
    taps: usize,
    depth: usize,
    columns: usize,
    isa: Isa,
}

impl PackedMatrix {
    /// Packs the values that `value(tap, depth, column)` names, for this processor.
    pub(crate) fn pack(
        taps: usize,
        depth: usize,
        columns: usize,
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        Self::pack_for(Isa::detect(), taps, depth, columns, value)
    }

    pub(crate) fn pack_for(
        isa: Isa,
        taps: usize,
        depth: usize,
        columns: usize,
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let width = kernel::panel_width(isa);
        let panel_lines = taps * depth * width / 16;
        let mut lines = vec![Line([0.0; 16]); columns.div_ceil(width) * panel_lines];
        if panel_lines > 0 {
            lines.par_chunks_mut(panel_lines).enumerate().for_each(|(panel, lines)| {
                let first = panel * width;
                let used = width.min(columns - first);
                for tap in 0..taps {
                    for k in 0..depth {
                        let start = (tap * depth + k) * width;
                        for lane in 0..used {
                            lines[(start + lane) / 16].0[(start + lane) % 16] = value(tap, k, first + lane);
                        }
                    }
                }
            });
        }
        Self { lines, taps, depth, columns, isa }
    }

    /// Columns of the matrix, without the padding of the last panel.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Values that each tap reads of a left row.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    fn panels(&self) -> usize {
        self.columns.div_ceil(kernel::panel_width(self.isa))
    }

    fn panel(&self, index: usize) -> &[f32] {
        let lines = self.taps * self.depth * kernel::panel_width(self.isa) / 16;
        let lines = &self.lines[index * lines..(index + 1) * lines];
        // SAFETY: a `Line` is sixteen values without padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
    }
}

/// The left side of a product.
///
/// # Safety
/// Each pointer that `fill` writes must stay readable for the matrix's depth while the source is borrowed.
pub(crate) unsafe trait RowSource: Sync {
    /// Writes the pointers of `count` rows from `first` on, into the first entries of each tap.
    fn fill(&self, first: usize, count: usize, taps: &mut [TapRows]);
}

/// Rows at equal distances in a slice.
#[derive(Clone, Copy)]
pub(crate) struct DenseRows<'a> {
    values: &'a [f32],
    stride: usize,
    length: usize,
}

impl<'a> DenseRows<'a> {
    /// Rows of `length` values, each `stride` after the one before.
    pub(crate) fn new(values: &'a [f32], stride: usize, length: usize) -> Self {
        Self { values, stride, length }
    }
}

// SAFETY: `fill` takes each row by a checked slice of `length` values.
unsafe impl RowSource for DenseRows<'_> {
    fn fill(&self, first: usize, count: usize, taps: &mut [TapRows]) {
        for (r, pointer) in taps[0][..count].iter_mut().enumerate() {
            let start = (first + r) * self.stride;
            *pointer = self.values[start..start + self.length].as_ptr();
        }
    }
}

/// What happens to each value of a product on its way to the output, in this order.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// Multiplies all values of a row, `[rows]`.
    pub(crate) scale: Option<&'a [f32]>,
    /// Added to each row, `[columns]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to all rows of one image: values `[images or 1, columns]`, and rows in an image.
    pub(crate) image_bias: Option<(&'a [f32], usize)>,
    /// Applied before the residual.
    pub(crate) activation: Option<Activation>,
    /// Added at last, shaped like the output.
    pub(crate) residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    fn apply(&self, row: usize, column: usize, columns: usize, values: &mut [f32]) {
        let end = column + values.len();
        if let Some(scale) = self.scale {
            let factor = scale[row];
            values.iter_mut().for_each(|value| *value *= factor);
        }
        if let Some(bias) = self.bias {
            add(values, &bias[column..end]);
        }
        if let Some((bias, rows)) = self.image_bias {
            let start = if bias.len() == columns { 0 } else { row / rows * columns };
            add(values, &bias[start + column..start + end]);
        }
        if let Some(activation) = self.activation {
            activation.apply(values);
        }
        if let Some(residual) = self.residual {
            add(values, &residual[row * columns + column..row * columns + end]);
        }
    }
}

fn add(values: &mut [f32], other: &[f32]) {
    for (value, other) in values.iter_mut().zip(other) {
        *value += other;
    }
}

/// Where a product goes: rows at a stride, so that it may be some columns of a wider matrix.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    first: *mut f32,
    stride: usize,
}

// SAFETY: tasks write to distinct rows and columns only.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

impl Target {
    /// # Safety
    /// The memory must be writable for as long as the target is used, by nobody else, and hold
    /// every row and column that a product writes.
    pub(crate) unsafe fn new(first: *mut f32, stride: usize) -> Self {
        Self { first, stride }
    }

    /// The part that begins at this row and column.
    ///
    /// # Safety
    /// The row and column must be inside.
    pub(crate) unsafe fn at(self, row: usize, column: usize) -> Self {
        // SAFETY: passed on.
        Self { first: unsafe { self.first.add(row * self.stride + column) }, stride: self.stride }
    }
}

/// Multiplies `rows` left rows by the matrix into a new `[rows, columns]` vector, on all threads of
/// the current pool.
pub(crate) fn multiply(
    source: &impl RowSource,
    rows: usize,
    matrix: &PackedMatrix,
    epilogue: &Epilogue,
) -> Vec<f32> {
    let mut output = vec![0.0f32; rows * matrix.columns];
    // SAFETY: the output has `rows` rows of `columns` values and outlives the product.
    let target = unsafe { Target::new(output.as_mut_ptr(), matrix.columns) };
    let panels = matrix.panels();
    if rayon::current_num_threads() == 1 || rows * matrix.columns * matrix.depth * matrix.taps < PARALLEL_WORK
    {
        for first in (0..rows).step_by(TASK_ROWS) {
            multiply_block(source, first..rows.min(first + TASK_ROWS), matrix, 0..panels, epilogue, target);
        }
        return output;
    }
    let row_tasks = rows.div_ceil(TASK_ROWS);
    let panel_tasks = panels.div_ceil(TASK_PANELS);
    (0..row_tasks * panel_tasks).into_par_iter().for_each(|task| {
        let first = task % row_tasks * TASK_ROWS;
        let panel = task / row_tasks * TASK_PANELS;
        multiply_block(
            source,
            first..rows.min(first + TASK_ROWS),
            matrix,
            panel..panels.min(panel + TASK_PANELS),
            epilogue,
            target,
        );
    });
    output
}

/// Multiplies some rows by some panels on the current thread.
fn multiply_block(
    source: &impl RowSource,
    rows: Range<usize>,
    matrix: &PackedMatrix,
    panels: Range<usize>,
    epilogue: &Epilogue,
    target: Target,
) {
    let width = kernel::panel_width(matrix.isa);
    let tiles = rows.len().div_ceil(kernel::tile_rows(matrix.isa));
    let bounds = |tile: usize| rows.start + rows.len() * tile / tiles;
    let mut pointers = vec![[std::ptr::null(); MAX_ROWS]; tiles * matrix.taps];
    for (tile, taps) in pointers.chunks_exact_mut(matrix.taps).enumerate() {
        source.fill(bounds(tile), bounds(tile + 1) - bounds(tile), taps);
    }
    let mut values = [0.0f32; MAX_ROWS * MAX_WIDTH];
    for panel in panels {
        let column = panel * width;
        let used = width.min(matrix.columns - column);
        for (tile, taps) in pointers.chunks_exact(matrix.taps).enumerate() {
            let (first, end) = (bounds(tile), bounds(tile + 1));
            // SAFETY: the matrix was packed for an instruction set of this processor, a tile has at
            // most `tile_rows` rows, and the source vouches for its pointers.
            unsafe {
                kernel::multiply_tile(
                    matrix.isa,
                    end - first,
                    taps,
                    matrix.depth,
                    matrix.panel(panel),
                    &mut values,
                )
            };
            for (row, values) in (first..end).zip(values.chunks_exact_mut(width)) {
                let values = &mut values[..used];
                epilogue.apply(row, column, matrix.columns, values);
                // SAFETY: the target has this row and these columns, and no other task writes them.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        values.as_ptr(),
                        target.first.add(row * target.stride + column),
                        used,
                    );
                }
            }
        }
    }
}

/// Multiplies all rows by the whole matrix on the current thread, into `target`.
///
/// # Safety
/// `target` must hold `rows` rows of the matrix's columns.
pub(crate) unsafe fn multiply_into(
    source: &impl RowSource,
    rows: usize,
    matrix: &PackedMatrix,
    epilogue: &Epilogue,
    target: Target,
) {
    for first in (0..rows).step_by(TASK_ROWS) {
        multiply_block(
            source,
            first..rows.min(first + TASK_ROWS),
            matrix,
            0..matrix.panels(),
            epilogue,
            target,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values without a pattern that a wrong index could keep.
    fn values(count: usize, seed: u64) -> Vec<f32> {
        crate::noise::normal(seed, 0, count)
    }

    fn product(isa: Isa, rows: usize, depth: usize, columns: usize, threads: usize) -> Vec<f32> {
        let (left, right) = (values(rows * depth, 1), values(depth * columns, 2));
        let (bias, residual) = (values(columns, 3), values(rows * columns, 4));
        let matrix =
            PackedMatrix::pack_for(isa, 1, depth, columns, |_, k, column| right[k * columns + column]);
        let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), ..Epilogue::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| multiply(&DenseRows::new(&left, depth, depth), rows, &matrix, &epilogue))
    }

    #[test]
    fn products_are_right_and_equal_to_the_bit_on_all_instruction_sets_and_threads() {
        for (rows, depth, columns) in
            [(1, 1, 1), (1, 7, 33), (5, 16, 16), (13, 64, 31), (97, 40, 77), (200, 96, 100)]
        {
            let expected = product(Isa::Portable, rows, depth, columns, 1);
            let (left, right) = (values(rows * depth, 1), values(depth * columns, 2));
            let (bias, residual) = (values(columns, 3), values(rows * columns, 4));
            for (index, value) in expected.iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let terms = (0..depth)
                    .map(|k| f64::from(left[row * depth + k]) * f64::from(right[k * columns + column]));
                let exact = terms.sum::<f64>() + f64::from(bias[column]) + f64::from(residual[index]);
                assert!(
                    (f64::from(*value) - exact).abs() < 1e-4,
                    "{rows}×{depth}×{columns} at {index}: {value} is not {exact}"
                );
            }
            for isa in Isa::available() {
                for threads in [1, 2, 5] {
                    assert_eq!(
                        product(*isa, rows, depth, columns, threads),
                        expected,
                        "{isa:?}, {threads} threads"
                    );
                }
            }
        }
    }
}
