//! Fixed-point numbers with 32 fractional bits that round down, and what Yuma consensus does with vectors
//! and sparse matrices of them. Nothing here is negative.

use super::Matrix;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fixed(u64);

impl Fixed {
    pub(super) const ZERO: Fixed = Fixed(0);
    pub(super) const ONE: Fixed = Fixed(1 << 32);

    pub(super) fn integer(value: u16) -> Self {
        Fixed(u64::from(value) << 32)
    }

    /// `part / whole`; zero when the whole is.
    pub(super) fn ratio(part: u128, whole: u128) -> Self {
        let quotient = (part << 32).checked_div(whole).unwrap_or(0);
        Fixed(u64::try_from(quotient).unwrap_or(u64::MAX))
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Fixed(self.0.saturating_add(other.0))
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Fixed(self.0.saturating_sub(other.0))
    }

    pub(super) fn times(self, other: Self) -> Self {
        let product = (u128::from(self.0) * u128::from(other.0)) >> 32;
        Fixed(u64::try_from(product).unwrap_or(u64::MAX))
    }

    fn times_up(self, other: Self) -> Self {
        let product = (u128::from(self.0) * u128::from(other.0)).div_ceil(1 << 32);
        Fixed(u64::try_from(product).unwrap_or(u64::MAX))
    }

    pub(super) fn over(self, other: Self) -> Self {
        Self::ratio(self.0.into(), other.0.into())
    }

    /// Of 65535, rounded down.
    pub(super) fn to_u16(self) -> u16 {
        u16::try_from((u128::from(self.0) * 65535) >> 32).unwrap_or(u16::MAX)
    }

    /// This share of an amount, rounded down.
    pub(super) fn of(self, amount: u64) -> u64 {
        u64::try_from((u128::from(self.0) * u128::from(amount)) >> 32).unwrap_or(u64::MAX)
    }
}

pub(super) fn sum(values: impl IntoIterator<Item = Fixed>) -> Fixed {
    values.into_iter().fold(Fixed::ZERO, Fixed::plus)
}

/// Scales to a sum of 1, except when all is zero.
pub(super) fn normalize(values: &mut [Fixed]) {
    let total = sum(values.iter().copied());
    if total > Fixed::ZERO {
        for value in values {
            *value = value.over(total);
        }
    }
}

pub(super) fn normalize_rows(matrix: &mut Matrix) {
    for row in matrix {
        let total = sum(row.iter().map(|e| e.1));
        for (_, value) in row {
            *value = value.over(total);
        }
    }
}

pub(super) fn normalize_columns(matrix: &mut Matrix, columns: usize) {
    divide_columns(matrix, columns, Fixed::plus);
}

/// Scales each column so that its largest value is 1.
pub(super) fn scale_columns_to_maximum(matrix: &mut Matrix, columns: usize) {
    divide_columns(matrix, columns, Fixed::max);
}

fn divide_columns(matrix: &mut Matrix, columns: usize, fold: impl Fn(Fixed, Fixed) -> Fixed) {
    let mut divisors = vec![Fixed::ZERO; columns];
    for &(column, value) in matrix.iter().flatten() {
        divisors[column] = fold(divisors[column], value);
    }
    for (column, value) in matrix.iter_mut().flatten() {
        if divisors[*column] > Fixed::ZERO {
            *value = value.over(divisors[*column]);
        }
    }
}

/// Each value, at most its column's limit.
pub(super) fn clip(matrix: &Matrix, limits: &[Fixed]) -> Matrix {
    map(matrix, |column, value| value.min(limits[column]))
}

/// `ratio` of the way from one matrix to a smaller one with the same columns, rounded down.
pub(super) fn between(from: &Matrix, to: &Matrix, ratio: Fixed) -> Matrix {
    from.iter()
        .zip(to)
        .map(|(from, to)| {
            let mut smaller = to.iter().peekable();
            from.iter()
                .map(|&(column, value)| {
                    let end = smaller.next_if(|e| e.0 == column).map_or(Fixed::ZERO, |e| e.1);
                    (column, value.minus(ratio.times_up(value.minus(end))))
                })
                .filter(|e| e.1 > Fixed::ZERO)
                .collect()
        })
        .collect()
}

/// `a · first + b · second`.
pub(super) fn add_rows(first: &Matrix, a: Fixed, second: &Matrix, b: Fixed) -> Matrix {
    first
        .iter()
        .zip(second)
        .map(|(first, second)| {
            let mut row = std::collections::BTreeMap::new();
            for (entries, factor) in [(first, a), (second, b)] {
                for &(column, value) in entries {
                    let cell: &mut Fixed = row.entry(column).or_default();
                    *cell = cell.plus(factor.times(value));
                }
            }
            row.into_iter().filter(|e| e.1 > Fixed::ZERO).collect()
        })
        .collect()
}

/// The sum of the rows, each times its factor.
pub(super) fn times_rows(matrix: &Matrix, factors: &[Fixed], columns: usize) -> Vec<Fixed> {
    let mut sums = vec![Fixed::ZERO; columns];
    for (row, &factor) in matrix.iter().zip(factors) {
        for &(column, value) in row {
            sums[column] = sums[column].plus(factor.times(value));
        }
    }
    sums
}

/// The sum of the columns, each times its factor.
pub(super) fn times_columns(matrix: &Matrix, factors: &[Fixed]) -> Vec<Fixed> {
    matrix.iter().map(|row| sum(row.iter().map(|&(column, value)| factors[column].times(value)))).collect()
}

fn map(matrix: &Matrix, change: impl Fn(usize, Fixed) -> Fixed) -> Matrix {
    matrix
        .iter()
        .map(|row| {
            row.iter()
                .map(|&(column, value)| (column, change(column, value)))
                .filter(|e| e.1 > Fixed::ZERO)
                .collect()
        })
        .collect()
}
