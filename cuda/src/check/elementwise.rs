//! Kernels around the matrix products, beside plain loops in double precision.

use super::agreement::Comparison;
use super::number::{Number, Random, for_all_types};
use super::{Fault, Outcome, Scale, Scratch};
use crate::Device;
use crate::activation::SiluMultiply;
use crate::norm::AddRmsNorm;
use crate::rows::{Embed, GatherRows};

/// One vector, odd numbers of them, and more than a block has threads; those of models.
fn widths(scale: Scale) -> &'static [usize] {
    scale.pick(
        &[8, 24, 576, 1000, 9000],
        &[8, 24, 576, 1000, 9000, 4096, 14_336, 16_384],
    )
}

/// More than a GPU runs at once.
fn many(scale: Scale) -> usize {
    scale.pick(3, 300)
}

pub(super) fn add_rms_norm<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(1);
        for (&width, with_delta) in widths(scale).iter().flat_map(|w| [(w, true), (w, false)]) {
            on.check_margins()?;
            let rows = many(scale);
            let hidden: Vec<f32> = random.numbers(rows * width);
            let delta: Vec<T> = random.numbers(rows * width);
            let weight: Vec<f32> = random.numbers(width);
            let eps = 1e-5;
            let (device_hidden, d) = (on.array(&hidden)?, on.array(&delta)?);
            let (w, out) = (on.array(&weight)?, on.unwritten::<T>(rows * width)?);
            let norm = AddRmsNorm {
                element: T::ELEMENT,
                rows,
                width,
                hidden: device_hidden.memory(),
                delta: with_delta.then(|| d.memory()),
                weight: w.memory(),
                eps,
                out: out.memory(),
            };
            norm.launch(on.device)?;
            let (added, out) = (on.values(&device_hidden)?, on.values(&out)?);
            for row in 0..rows {
                let range = row * width..(row + 1) * width;
                let at =
                    |i| move || format!("{}, width {width}, row {row}, {i}", T::ELEMENT.name());
                let sums = hidden[range.clone()].iter().zip(&delta[range.clone()]);
                let x: Vec<f32> = sums
                    .map(|(x, d)| if with_delta { x + d.value() } else { *x })
                    .collect();
                for (i, (got, x)) in added[range.clone()].iter().zip(&x).enumerate() {
                    comparison.same(*got, *x, || format!("the residual stream, {}", at(i)()));
                }
                let squares = x.iter().map(|x| f64::from(*x).powi(2));
                let mean = squares.sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                for (i, got) in out[range].iter().enumerate() {
                    let exact = f64::from(x[i]) * scale * f64::from(weight[i]);
                    comparison.close(*got, exact, 1e-6, at(i));
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

pub(super) fn silu_multiply<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(2);
        for &width in widths(scale) {
            on.check_margins()?;
            let rows = many(scale);
            let mut gate_up: Vec<T> = random.numbers(rows * 2 * width);
            // Where the exponential is nothing, or more than any number.
            gate_up[0] = T::of(-200.0);
            gate_up[1] = T::of(200.0);
            gate_up[2] = T::of(0.0);
            let (input, out) = (on.array(&gate_up)?, on.unwritten::<T>(rows * width)?);
            let multiply = SiluMultiply {
                element: T::ELEMENT,
                rows,
                width,
                gate_up: input.memory(),
                out: out.memory(),
            };
            multiply.launch(on.device)?;
            let out = on.values(&out)?;
            for (row, out) in out.chunks_exact(width).enumerate() {
                for (i, got) in out.iter().enumerate() {
                    let gate = f64::from(gate_up[row * 2 * width + i].value());
                    let up = f64::from(gate_up[(row * 2 + 1) * width + i].value());
                    let exact = gate / (1.0 + (-gate).exp()) * up;
                    comparison.close(*got, exact, 1e-6, || {
                        format!("{}, width {width}, row {row}, {i}", T::ELEMENT.name())
                    });
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

pub(super) fn embed<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(3);
        for &width in widths(scale) {
            on.check_margins()?;
            let vocab = 11;
            let table: Vec<T> = random.numbers(vocab * width);
            // The last of them stand for what slots drew: token 7, nothing, and a slot that there is not.
            let tokens = [0, 10, 11, 4, -2, -1, -3].repeat(scale.pick(1, 100));
            let expected = [Some(0), Some(10), None, Some(4), Some(7), None, None];
            let (device_table, device_tokens) = (on.array(&table)?, on.array(&tokens)?);
            let drawn = on.array(&[-1, 7])?;
            let hidden = on.unwritten::<f32>(tokens.len() * width)?;
            let embed = Embed {
                element: T::ELEMENT,
                tokens_len: tokens.len(),
                vocab,
                width,
                slots: 2,
                table: device_table.memory(),
                tokens: device_tokens.memory(),
                drawn: drawn.memory(),
                hidden: hidden.memory(),
            };
            embed.launch(on.device)?;
            let hidden = on.values(&hidden)?;
            for (row, token) in hidden.chunks_exact(width).zip(expected.iter().cycle()) {
                for (i, value) in row.iter().enumerate() {
                    let exact = token.map_or(0.0, |token: usize| table[token * width + i].value());
                    comparison.same(*value, exact, || {
                        format!("{}, width {width}, token {token:?}, {i}", T::ELEMENT.name())
                    });
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

pub(super) fn gather_rows<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(4);
        for &width in widths(scale) {
            on.check_margins()?;
            let from: Vec<T> = random.numbers(9 * width);
            let rows = [8, 0, -1, 3, 9, 3].repeat(scale.pick(1, 100));
            let (device, wanted) = (on.array(&from)?, on.array(&rows)?);
            let to = on.unwritten::<T>(rows.len() * width)?;
            let gather = GatherRows {
                element: T::ELEMENT,
                wanted: rows.len(),
                count: 9,
                width,
                from: device.memory(),
                rows: wanted.memory(),
                to: to.memory(),
            };
            gather.launch(on.device)?;
            for (got, row) in on.values(&to)?.chunks_exact(width).zip(rows) {
                let exact = usize::try_from(row).ok().filter(|row| *row < 9);
                for (i, value) in got.iter().enumerate() {
                    let exact = exact.map_or(0.0, |row| from[row * width + i].value());
                    comparison.same(value.value(), exact, || {
                        format!("{}, width {width}, row {row}, {i}", T::ELEMENT.name())
                    });
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}
