//! That operands of the tensor cores are taken apart and put together again as they should be.

use bytemuck::{NoUninit, bytes_of};
use half::{bf16, f16};

use super::agreement::Comparison;
use super::{Outcome, Scale, Scratch};
use crate::catalogue::Source;
use crate::{Device, Element, Kernel, Launch, Unit};

const SOURCE: Source = Source {
    name: "tensor_cores.cu",
    text: include_str!("tensor_cores.cu"),
};
const ELEMENTS: [Element; 2] = [Element::Bf16, Element::F16];

pub(super) fn units() -> Vec<Unit> {
    ELEMENTS.map(|element| Unit::new(SOURCE, element)).to_vec()
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    a: u64,
    b: u64,
    c: u64,
    out: u64,
}

/// A matrix of small numbers, whose products are exact, of so many columns.
fn matrix(seed: usize, columns: usize) -> impl Fn(usize, usize) -> f32 {
    move |row, column| ((row * columns + column) * 37 % 101 * seed % 31) as f32 - 15.0
}

pub(super) fn products<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let (a, b, c) = (matrix(1, 32), matrix(2, 32), matrix(3, 16));
    let mut comparison = Comparison::default();
    for element in ELEMENTS {
        let encode = |of: &dyn Fn(usize, usize) -> f32, columns: usize| {
            let bits = |x| match element {
                Element::Bf16 => bf16::from_f32(x).to_bits(),
                _ => f16::from_f32(x).to_bits(),
            };
            let values = (0..512).map(|i| bits(of(i / columns, i % columns)));
            on.array(&values.collect::<Vec<u16>>())
        };
        let (left, rows, columns) = (encode(&a, 32)?, encode(&b, 32)?, encode(&c, 16)?);
        let out = on.unwritten::<f32>(512)?;
        let params = Params {
            a: left.address(),
            b: rows.address(),
            c: columns.address(),
            out: out.address(),
        };
        let launch = Launch {
            kernel: Kernel {
                unit: Unit::new(SOURCE, element),
                name: "products",
            },
            grid: [1, 1, 1],
            threads: 32,
            shared: 0,
            params: bytes_of(&params),
        };
        // SAFETY: the parameters are those of the kernel, and the arrays have the sizes that it says.
        unsafe { on.device.launch(&launch) }?;
        for (i, ours) in on.values(&out)?.into_iter().enumerate() {
            let (which, row, column) = (i / 256, i / 16 % 16, i % 16);
            let product = |k| match which {
                0 => a(row, k) * b(column, k),
                _ => a(row, k) * c(k, column),
            };
            let exact: f32 = (0..32).map(product).sum();
            comparison.same(ours, exact, || {
                let name = element.name();
                format!("{name}: product {which}, row {row}, column {column}")
            });
        }
    }
    comparison.outcome()
}
