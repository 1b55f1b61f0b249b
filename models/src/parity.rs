//! How near our numbers must be to those of the reference implementation.

/// The largest difference that is right, relative to the largest value of the reference.
const TOLERANCE: f64 = 1e-4;

/// The largest difference over the largest absolute value of the reference; NaN if any number is none.
fn largest_error(found: &[f32], expected: &[f32]) -> f64 {
    // `f64::max` would pass over what is no number.
    let larger = |a: f64, b: f64| if a >= b || a.is_nan() { a } else { b };
    let largest = expected.iter().map(|value| f64::from(value.abs())).fold(0.0, larger);
    let differences = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, larger) / largest
}

/// The length of the difference over the length of the reference.
pub(crate) fn length_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |value: f64| value * value;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let length: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    (difference / length).sqrt()
}

/// Holds every number against the reference.
#[track_caller]
pub(crate) fn assert_parity(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let error = largest_error(found, expected);
    println!("{name}: relative error {error:.2e}");
    assert!(error <= TOLERANCE, "{name}: relative error {error:.2e}");
}

#[test]
fn errors_are_of_the_largest_value_and_never_hidden() {
    assert_eq!(largest_error(&[1.0, 0.5], &[1.0, -4.0]), 4.5 / 4.0);
    assert_eq!(largest_error(&[2.0, 3.0], &[2.0, 3.0]), 0.0);
    for (found, expected) in
        [([f32::NAN, 1.0], [1.0, 1.0]), ([1.0, f32::NAN], [1.0, 1.0]), ([1.0; 2], [f32::NAN, 1.0])]
    {
        assert!(largest_error(&found, &expected).is_nan());
    }
}
