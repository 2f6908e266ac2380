//! Rows in fp8 and products of them, beside the definition of e4m3.

use half::bf16;

use super::agreement::Comparison;
use super::number::{Number, Random};
use super::scratch::Array;
use super::{Fault, Outcome, Scale, Scratch};
use crate::compile::FP8;
use crate::quantize::QuantizeRows;
use crate::{Device, Product, Scales};

/// What sums lose at most, relative to the sum of what is added without signs: tensor cores keep some 14 bits of what
/// they add in fp8.
const SUMS: f64 = 1e-3;

/// What a byte of e4m3 stands for.
fn value(code: u8) -> f64 {
    let sign = if code < 0x80 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    match exponent {
        15 if code & 7 == 7 => f64::NAN,
        0 => sign * mantissa / 8.0 * 2f64.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    }
}

/// The byte that is nearest to a number, by looking at all of them; of two as near, the even one.
fn nearest(x: f64) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let far = |code: &u8| ((value(*code) - x).abs(), code & 1);
    let nearer = |best, code| if far(&code) < far(&best) { code } else { best };
    (sign..sign + 0x7f).fold(sign, nearer)
}

/// Rows on the device as the kernel has them: bytes and scales.
struct Quantized {
    bytes: Array<u8>,
    scales: Array<f32>,
}

fn quantize<D: Device>(on: &Scratch<'_, D>, rows: usize, x: &[bf16]) -> Result<Quantized, Fault> {
    let (input, bytes) = (on.array(x)?, on.unwritten(x.len())?);
    let scales = on.unwritten(rows)?;
    let quantize = QuantizeRows {
        rows,
        width: x.len() / rows,
        x: input.memory(),
        out: bytes.memory(),
        scales: scales.memory(),
    };
    quantize.launch(on.device)?;
    Ok(Quantized { bytes, scales })
}

/// Compares what the kernel makes of some rows with the definition.
fn compare<D: Device>(
    on: &Scratch<'_, D>,
    rows: usize,
    x: &[bf16],
    comparison: &mut Comparison,
) -> Result<(), Fault> {
    on.check_margins()?;
    let width = x.len() / rows;
    let quantized = quantize(on, rows, x)?;
    let (bytes, scales) = (on.values(&quantized.bytes)?, on.values(&quantized.scales)?);
    let of_rows = x.chunks_exact(width).zip(bytes.chunks_exact(width));
    for (row, ((x, bytes), got)) in of_rows.zip(scales).enumerate() {
        let sizes = x.iter().map(|x| x.to_f32().abs());
        let scale = (sizes.fold(0.0, f32::max) / 448.0).max(f32::MIN_POSITIVE);
        comparison.same(got, scale, || format!("width {width}, scale of row {row}"));
        for (i, (x, byte)) in x.iter().zip(bytes).enumerate() {
            let scaled = x.to_f32() * (1.0 / scale);
            comparison.same(*byte, nearest(f64::from(scaled)), || {
                format!("width {width}, row {row}, {i}, {x}")
            });
        }
    }
    Ok(())
}

/// Filled up to a width that the kernel takes.
fn row(values: impl IntoIterator<Item = f64>) -> Vec<bf16> {
    let mut row: Vec<bf16> = values.into_iter().map(bf16::from_f64).collect();
    row.resize(row.len().next_multiple_of(16), bf16::ZERO);
    row
}

pub(super) fn quantize_rows<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    // Every byte stands for a number of bf16, also multiplied by these, and becomes itself.
    let numbers = || (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f);
    for by in [1.0, 2f64.powi(-30), 2f64.powi(40)] {
        let x = row(numbers().map(|code| value(code) * by));
        let quantized = quantize(on, 1, &x)?;
        for (code, got) in numbers().zip(on.values(&quantized.bytes)?) {
            comparison.same(got, code, || format!("{code:#04x} multiplied by {by}"));
        }
        let scales = on.values(&quantized.scales)?;
        comparison.same(scales, vec![by as f32], || "the scale of every byte".into());
    }
    // What lies in the middle of two bytes, and what lies beside that. The largest makes 1 of the scale.
    let mut between = vec![448.0];
    for code in 0..0x7e {
        let middle = bf16::from_f64(f64::midpoint(value(code), value(code + 1))).to_bits();
        for bits in middle - 1..=middle + 1 {
            let x = bf16::from_bits(bits).to_f64();
            between.extend([x, -x]);
        }
    }
    compare(on, 1, &row(between), &mut comparison)?;
    // One vector, odd numbers of them, more than a block has threads, and those of models; rows of different sizes.
    let mut random = Random(10);
    let widths = scale.pick(
        &[16, 48, 1008, 9008][..],
        &[16, 48, 1008, 9008, 4096, 14_336],
    );
    for width in widths {
        let sizes = [1.0, 1e-20, 1e20, 0.0, 3e-39].repeat(scale.pick(1, 3));
        let mut x = Vec::new();
        for size in &sizes {
            x.extend((0..*width).map(|_| bf16::of(random.normal() * size)));
        }
        compare(on, sizes.len(), &x, &mut comparison)?;
    }
    // A row with what is no number stands for none, and the others for what they did.
    for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 700] {
            on.check_margins()?;
            let mut x = vec![bf16::ONE; 3 * 1008];
            x[1008 + at] = bf16::of(odd);
            let quantized = quantize(on, 3, &x)?;
            let (bytes, scales) = (on.values(&quantized.bytes)?, on.values(&quantized.scales)?);
            let of_rows = bytes.chunks_exact(1008).zip(scales);
            for (row, (bytes, scale)) in of_rows.enumerate() {
                let stands = |byte: &u8| value(*byte) * f64::from(scale);
                let fits = match row {
                    1 => !scale.is_finite() && bytes.iter().any(|byte| !stands(byte).is_finite()),
                    _ => bytes.iter().all(|byte| (stands(byte) - 1.0).abs() < 1e-6),
                };
                comparison.fact(fits, || format!("row {row}, where one of three has {odd}"));
            }
        }
    }
    comparison.outcome()
}

/// Of devices that have such products: of others it says that they are none of them.
pub(super) fn scaled_product<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    let capability = on.device.capability();
    comparison.fact(capability >= crate::compile::LEAST, || {
        format!("kernels run on {capability}")
    });
    let shapes = scale.pick(
        &[(1, 16, 16), (3, 64, 48), (17, 208, 32)][..],
        &[
            (1, 16, 16),
            (3, 64, 48),
            (17, 208, 32),
            (1, 4096, 6144),
            (2, 14_336, 4096),
            (64, 4096, 4096),
        ],
    );
    let shapes = if capability >= FP8 { shapes } else { &[] };
    let mut random = Random(11);
    for &(rows, inputs, outputs) in shapes {
        on.check_margins()?;
        // Of different sizes, so that each row needs its own scale.
        let mut matrix = |rows: usize| -> Vec<bf16> {
            let size = |i: usize| [1.0, 0.01, 10.0, 0.1, 100.0][i / inputs % 5];
            let number = |i| bf16::of(random.normal() * size(i));
            (0..rows * inputs).map(number).collect()
        };
        let x = quantize(on, rows, &matrix(rows))?;
        let weight = quantize(on, outputs, &matrix(outputs))?;
        let bias: Vec<bf16> = random.numbers(outputs);
        let (device_bias, out) = (on.array(&bias)?, on.unwritten::<bf16>(rows * outputs)?);
        let numbers = |quantized: &Quantized| -> Result<Vec<f64>, Fault> {
            let scales = on.values(&quantized.scales)?;
            let bytes = on.values(&quantized.bytes)?;
            let number = |(i, byte): (usize, &u8)| value(*byte) * f64::from(scales[i / inputs]);
            Ok(bytes.iter().enumerate().map(number).collect())
        };
        let (of_x, of_weight) = (numbers(&x)?, numbers(&weight)?);
        for with_bias in [false, true] {
            on.device.multiply(&Product {
                element: bf16::ELEMENT,
                rows,
                inputs,
                outputs,
                x: x.bytes.memory(),
                weight: weight.bytes.memory(),
                scales: Some(Scales {
                    x: x.scales.memory(),
                    weight: weight.scales.memory(),
                }),
                bias: with_bias.then(|| device_bias.memory()),
                out: out.memory(),
            })?;
            for (i, got) in on.values(&out)?.into_iter().enumerate() {
                let (row, o) = (i / outputs, i % outputs);
                let added = if with_bias { bias[o].to_f64() } else { 0.0 };
                let (mut sum, mut size) = (added, added.abs());
                let x = &of_x[row * inputs..][..inputs];
                for (x, w) in x.iter().zip(&of_weight[o * inputs..]) {
                    sum += x * w;
                    size += (x * w).abs();
                }
                let bound = size * SUMS + sum.abs() * bf16::ROUNDING;
                comparison.within(got.to_f64(), sum, bound, || {
                    format!(
                        "[{rows}, {inputs}] by [{outputs}, {inputs}], bias {with_bias}, row {row}, {o}"
                    )
                });
            }
        }
    }
    comparison.outcome()
}
