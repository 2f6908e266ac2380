//! What a comparison finds.

use std::fmt::Debug;

use super::number::Number;
use crate::{DeviceError, LaunchError};

/// That all was as it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// How much was compared: numbers, or other facts.
    pub compared: u64,
    /// Error of the number that came closest to its bound.
    pub error: f64,
    /// Its bound; 0 if everything had to be exact.
    pub bound: f64,
}

/// Why a case fails.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The device computes something else.
    #[error("{0}")]
    Differs(String),
    /// The device does not compute.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<LaunchError> for Fault {
    fn from(error: LaunchError) -> Fault {
        Fault::Device(error.into())
    }
}

/// What a case gives.
pub type Outcome = Result<Agreement, Fault>;

/// Compares, and keeps what came closest to its bound, or went beyond it.
#[derive(Debug, Default)]
pub struct Comparison {
    worst: Agreement,
    /// Its error as a part of its bound.
    part: f64,
    compared: u64,
    differ: u64,
    first: Option<String>,
}

impl Comparison {
    /// A number that may be off by `bound`.
    pub fn within(&mut self, got: f64, exact: f64, bound: f64, at: impl FnOnce() -> String) {
        let error = match got == exact {
            true => 0.0,
            false => (got - exact).abs(),
        };
        let fits = error <= bound;
        // What is no number is worse than any.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        let part = if error == 0.0 { 0.0 } else { error / bound };
        if part > self.part || self.worst.bound == 0.0 && self.part == 0.0 {
            (self.worst.error, self.worst.bound, self.part) = (error, bound, part);
        }
        self.fact(fits, || {
            format!(
                "{}: {got} instead of {exact}, where {bound:.1e} is allowed",
                at()
            )
        });
    }

    /// A result that is exact but for `relative` of it, of its scale, and for its rounding.
    pub(super) fn close<T: Number>(
        &mut self,
        got: T,
        exact: f64,
        relative: f64,
        at: impl FnOnce() -> String,
    ) {
        let bound = exact.abs() * (relative + T::ROUNDING) + relative * 1e-2 + T::STEP;
        self.within(f64::from(got.value()), exact, bound, at);
    }

    /// Something that must be the same.
    pub fn same<T: PartialEq + Debug>(&mut self, got: T, expected: T, at: impl FnOnce() -> String) {
        let same = got == expected;
        self.fact(same, || {
            format!("{}: {got:?} instead of {expected:?}", at())
        });
    }

    /// Something that must hold; `otherwise` says what does not.
    pub fn fact(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.compared += 1;
        if !holds {
            self.differ += 1;
            self.first.get_or_insert_with(otherwise);
        }
    }

    /// What came of it.
    ///
    /// # Errors
    /// If something differs: how much of all, where the first is, and how far off the worst.
    pub fn outcome(self) -> Outcome {
        let Comparison {
            worst,
            compared,
            differ,
            first,
            ..
        } = self;
        match first {
            None if compared == 0 => Err(Fault::Differs("nothing was compared".into())),
            None => Ok(Agreement { compared, ..worst }),
            Some(first) => {
                let worst = match worst.error > worst.bound {
                    true => format!(
                        "; the worst is off by {:.1e}, where {:.1e} is allowed",
                        worst.error, worst.bound
                    ),
                    false => String::new(),
                };
                Err(Fault::Differs(format!(
                    "{differ} of {compared} differ, first {first}{worst}"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(compare: impl FnOnce(&mut Comparison)) -> Outcome {
        let mut comparison = Comparison::default();
        compare(&mut comparison);
        comparison.outcome()
    }

    #[test]
    fn the_number_closest_to_its_bound_is_kept() {
        let agreement = compared(|c| {
            c.within(1.0, 1.0, 0.0, String::new);
            c.within(1.0, 1.5, 1.0, String::new);
            c.within(1.0, 1.25, 0.25, String::new);
            c.within(9.0, 1.0, 100.0, String::new);
            c.same(3, 3, String::new);
        });
        let expected = Agreement {
            compared: 5,
            error: 0.25,
            bound: 0.25,
        };
        assert_eq!(agreement.expect("agrees"), expected);
    }

    #[test]
    fn differences_are_counted_and_the_first_is_told() {
        let fault = compared(|c| {
            c.close(1.0f32, 1.0, 1e-6, || "a".into());
            c.close(1.1f32, 1.0, 1e-6, || "b".into());
            c.close(f32::NAN, 1.0, 1e-6, || "c".into());
            c.within(f64::INFINITY, f64::INFINITY, 0.0, || "d".into());
        });
        let text = fault.expect_err("differs").to_string();
        assert!(text.starts_with("2 of 4 differ, first b: 1.10"), "{text}");
        assert!(text.contains("the worst is off by inf"), "{text}");
        let fault = compared(|c| c.same([1, 2], [1, 3], || "token 7".into()));
        assert_eq!(
            fault.expect_err("differs").to_string(),
            "1 of 1 differ, first token 7: [1, 2] instead of [1, 3]"
        );
        assert!(
            compared(|_| {}).is_err(),
            "what compares nothing proves nothing"
        );
    }
}
