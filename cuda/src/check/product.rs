//! Products of matrices, beside sums in double precision.

use super::agreement::Comparison;
use super::number::{Number, Random, for_all_types};
use super::{Fault, Outcome, Scale, Scratch};
use crate::{Device, Product};

/// What sums in `f32` lose at most, relative to the sum of what is added without signs. Several times less than
/// what factors rounded to TF32 lose, or partial sums rounded to 16 bits.
pub(super) const SUMS: f64 = 1e-6;

/// `(rows, inputs, outputs)`: of one, of odd numbers, of tiles and their edges, and from [`SMALL`] on of models.
const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 64, 96),
    (3, 100, 7),
    (17, 33, 65),
    (64, 128, 40),
    (130, 256, 72),
    (1, 4096, 6144),
    (2, 14_336, 4096),
    (64, 4096, 4096),
    (256, 4096, 2000),
    (1000, 2048, 1024),
];
/// How many of them an emulator can do.
const SMALL: usize = 6;

/// Rows whose results are compared.
fn compared(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).filter(move |row| rows <= 16 || row % 29 == 0 || *row + 1 == rows)
}

pub(super) fn product<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(6);
        for &(rows, inputs, outputs) in &SHAPES[..scale.pick(SMALL, SHAPES.len())] {
            on.check_margins()?;
            let x: Vec<T> = random.numbers(rows * inputs);
            let weight: Vec<T> = random.numbers(outputs * inputs);
            let bias: Vec<T> = random.numbers(outputs);
            let (device_x, device_weight) = (on.array(&x)?, on.array(&weight)?);
            let (device_bias, out) = (on.array(&bias)?, on.unwritten::<T>(rows * outputs)?);
            for with_bias in [false, true] {
                let product = Product {
                    element: T::ELEMENT,
                    rows,
                    inputs,
                    outputs,
                    x: device_x.memory(),
                    weight: device_weight.memory(),
                    scales: None,
                    bias: with_bias.then(|| device_bias.memory()),
                    out: out.memory(),
                };
                on.device.multiply(&product)?;
                let got = on.values(&out)?;
                for row in compared(rows) {
                    let (x, got) = (&x[row * inputs..][..inputs], &got[row * outputs..]);
                    for (o, weight) in weight.chunks_exact(inputs).enumerate() {
                        let added = if with_bias { bias[o] } else { T::of(0.0) };
                        compare(comparison, got[o], x, weight, added, || {
                            format!(
                                "{}, [{rows}, {inputs}] by [{outputs}, {inputs}], bias {with_bias}, row {row}, {o}",
                                T::ELEMENT.name()
                            )
                        });
                    }
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

/// Compares one number of a product.
pub(super) fn compare<T: Number>(
    comparison: &mut Comparison,
    got: T,
    x: &[T],
    weight: &[T],
    bias: T,
    at: impl FnOnce() -> String,
) {
    let value = |x: T| f64::from(x.value());
    let (mut sum, mut size) = (value(bias), value(bias).abs());
    for (x, w) in x.iter().zip(weight) {
        let term = value(*x) * value(*w);
        sum += term;
        size += term.abs();
    }
    let bound = size * SUMS + sum.abs() * T::ROUNDING + T::STEP;
    comparison.within(value(got), sum, bound, at);
}
