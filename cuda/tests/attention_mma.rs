//! That operands of the tensor cores are taken apart and put together again as they should be.
// Launches a kernel of its own.
#![allow(unsafe_code)]

use bytemuck::{NoUninit, bytes_of};
use half::{bf16, f16};
use realm_cuda::catalogue::Source;
use realm_cuda::{Element, Kernel, Launch, Launcher, Unit};
use realm_cuda_emulator::{Buffer, Emulator};

const SOURCE: Source = Source {
    name: "attention_mma.cu",
    text: include_str!("attention_mma.cu"),
};

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

#[test]
fn products_are_those_of_the_matrices() {
    let emulator = Emulator::new();
    let (a, b, c) = (matrix(1, 32), matrix(2, 32), matrix(3, 16));
    for element in [Element::Bf16, Element::F16] {
        let encode = |of: &dyn Fn(usize, usize) -> f32, columns: usize| {
            let bits = |x| match element {
                Element::Bf16 => bf16::from_f32(x).to_bits(),
                _ => f16::from_f32(x).to_bits(),
            };
            let values = (0..512).map(|i| bits(of(i / columns, i % columns)));
            Buffer::of(&values.collect::<Vec<u16>>())
        };
        let (left, rows, columns) = (encode(&a, 32), encode(&b, 32), encode(&c, 16));
        let out = Buffer::<f32>::new(512);
        let params = Params {
            a: left.memory().address(),
            b: rows.memory().address(),
            c: columns.memory().address(),
            out: out.memory().address(),
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
        // SAFETY: the parameters are those of the kernel, and the buffers have the sizes that it says.
        unsafe { emulator.launch(&launch) }.expect("runs");
        for (i, ours) in out.values().iter().enumerate() {
            let (which, row, column) = (i / 256, i / 16 % 16, i % 16);
            let product = |k| match which {
                0 => a(row, k) * b(column, k),
                _ => a(row, k) * c(k, column),
            };
            let exact: f32 = (0..32).map(product).sum();
            assert_eq!(
                *ours, exact,
                "{element:?}: {which}, row {row}, column {column}"
            );
        }
    }
}
