//! Calls of `torch.cpp`.

// Hands memory of devices to libtorch.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use realm_cuda::{DeviceError, Element, Memory, Product};

unsafe extern "C" {
    fn realm_stream(device: i32, number: *mut i64, handle: *mut *mut c_void) -> *mut c_char;
    fn realm_multiply(product: *const RealmProduct) -> *mut c_char;
    fn free(text: *mut c_char);
}

/// As in `torch.cpp`.
#[repr(C)]
struct RealmProduct {
    device: i32,
    element: i32,
    stream: i64,
    rows: i64,
    inputs: i64,
    outputs: i64,
    x: *mut c_void,
    weight: *mut c_void,
    x_scales: *mut c_void,
    weight_scales: *mut c_void,
    bias: *mut c_void,
    out: *mut c_void,
}

/// What products are carried out on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// The processors, on which a product is done when its call returns.
    #[cfg(test)]
    Cpu,
    /// A stream of a GPU.
    Stream {
        /// The GPU's number.
        device: i32,
        /// libtorch's number of the stream.
        number: i64,
    },
}

/// Has libtorch begin with a GPU, and takes one of its streams of that GPU, which lives as long as the process: the
/// place, and the driver's handle.
pub(super) fn stream(device: usize) -> Result<(Place, *mut c_void), DeviceError> {
    let device = i32::try_from(device).map_err(|e| failed(e.to_string()))?;
    let (mut number, mut handle) = (0, null_mut());
    // SAFETY: writes to the two.
    message(unsafe { realm_stream(device, &mut number, &mut handle) })?;
    Ok((Place::Stream { device, number }, handle))
}

/// Multiplies matrices in memory of the place.
pub(super) fn multiply(place: Place, product: &Product) -> Result<(), DeviceError> {
    product.check()?;
    let Product {
        rows,
        inputs,
        outputs,
        ..
    } = *product;
    let size = |n: usize| i64::try_from(n).map_err(|e| failed(e.to_string()));
    let address = |memory: Memory| memory.address() as *mut c_void;
    let (device, stream) = match place {
        #[cfg(test)]
        Place::Cpu => (-1, 0),
        Place::Stream { device, number } => (device, number),
    };
    let product = RealmProduct {
        device,
        element: match product.element {
            Element::F32 => 0,
            Element::Bf16 => 1,
            Element::F16 => 2,
        },
        stream,
        rows: size(rows)?,
        inputs: size(inputs)?,
        outputs: size(outputs)?,
        x: address(product.x),
        weight: address(product.weight),
        x_scales: product
            .scales
            .map_or(null_mut(), |scales| address(scales.x)),
        weight_scales: product
            .scales
            .map_or(null_mut(), |scales| address(scales.weight)),
        bias: product.bias.map_or(null_mut(), address),
        out: address(product.out),
    };
    // SAFETY: checked to hold as many elements; whoever made the memory vouches for the rest.
    message(unsafe { realm_multiply(&product) })
}

fn failed(why: String) -> DeviceError {
    DeviceError::Failed {
        what: "libtorch",
        why,
    }
}

/// What a function of `torch.cpp` returned.
fn message(text: *mut c_char) -> Result<(), DeviceError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a string of `strdup`, which ends with a zero and is not used after it is freed.
    let message = unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text);
        message
    };
    Err(failed(message))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use realm_cuda::Scales;

    use super::*;

    /// As an element type holds it.
    fn encode(element: Element, values: &[f32]) -> Vec<u8> {
        let encode = |x: &f32| match element {
            Element::F32 => x.to_ne_bytes().to_vec(),
            Element::Bf16 => bf16::from_f32(*x).to_ne_bytes().to_vec(),
            Element::F16 => f16::from_f32(*x).to_ne_bytes().to_vec(),
        };
        values.iter().flat_map(encode).collect()
    }

    fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
        let four = |x: &[u8]| f32::from_ne_bytes(x.try_into().expect("4 bytes"));
        let two = |x: &[u8]| <[u8; 2]>::try_from(x).expect("2 bytes");
        let decode = |x: &[u8]| match element {
            Element::F32 => four(x),
            Element::Bf16 => bf16::from_ne_bytes(two(x)).to_f32(),
            Element::F16 => f16::from_ne_bytes(two(x)).to_f32(),
        };
        bytes.chunks_exact(element.size()).map(decode).collect()
    }

    /// Numbers between -1 and 1, as the type holds them, in bytes that begin at a multiple of 16.
    fn noise(element: Element, count: usize, seed: u32) -> (Vec<u128>, Vec<f32>) {
        let value = |i: usize| {
            let x = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9e37_79b9);
            (x ^ x >> 15).wrapping_mul(0x85eb_ca6b) as f32 / (1u64 << 31) as f32 - 1.0
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        let bytes = encode(element, &values);
        let mut aligned = vec![0u128; bytes.len().div_ceil(16).max(1)];
        bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()].copy_from_slice(&bytes);
        (aligned, decode(element, &bytes))
    }

    fn memory(of: &mut [u128]) -> Memory {
        let bytes = size_of_val(of);
        // SAFETY: products of these tests run on processors, and are done before it is gone.
        unsafe { Memory::new(of.as_mut_ptr().addr() as u64, bytes) }
    }

    /// How far the rounding of a result may be from the exact one, as a part of it.
    fn rounding(element: Element) -> f64 {
        match element {
            Element::F32 => 1e-6,
            Element::Bf16 => 1.0 / 256.0,
            Element::F16 => 1.0 / 2048.0,
        }
    }

    #[test]
    fn products_are_what_their_definition_says() {
        for element in Element::ALL {
            for (rows, inputs, outputs) in [
                (1, 8, 16),
                (1, 64, 40),
                (3, 24, 8),
                (17, 200, 33),
                (64, 64, 64),
            ] {
                for with_bias in [false, true] {
                    let (mut x, xs) = noise(element, rows * inputs, 1);
                    let (mut weight, weights) = noise(element, outputs * inputs, 2);
                    let (mut bias, biases) = noise(element, outputs, 3);
                    // What was there has no part in it.
                    let mut out = vec![u128::MAX; (rows * outputs * element.size()).div_ceil(16)];
                    let product = Product {
                        element,
                        rows,
                        inputs,
                        outputs,
                        x: memory(&mut x),
                        weight: memory(&mut weight),
                        scales: None,
                        bias: with_bias.then(|| memory(&mut bias)),
                        out: memory(&mut out),
                    };
                    multiply(Place::Cpu, &product).expect("multiplied");
                    let bytes = &bytemuck::cast_slice(&out)[..rows * outputs * element.size()];
                    for (i, found) in decode(element, bytes).into_iter().enumerate() {
                        let (row, output) = (i / outputs, i % outputs);
                        let terms = (0..inputs).map(|k| {
                            f64::from(xs[row * inputs + k])
                                * f64::from(weights[output * inputs + k])
                        });
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term: f64| {
                            (sum + term, size + term.abs())
                        });
                        let bias = f64::from(u8::from(with_bias)) * f64::from(biases[output]);
                        let expected = sum + bias;
                        let error = (f64::from(found) - expected).abs();
                        // One rounding to the type, and those of a sum of f32.
                        let most = expected.abs() * rounding(element) + size * 1e-6;
                        assert!(
                            error <= most,
                            "{element:?} {rows}x{inputs}x{outputs} bias {with_bias}, {row},{output}: \
                             {found} is not {expected}"
                        );
                    }
                }
            }
        }
    }

    /// libtorch 2.11 has them with a scale for each row on GPUs alone. So far they come.
    #[test]
    fn products_with_scales_are_asked_for() {
        let [mut x, mut weight, mut scales] =
            [1, 2, 3].map(|seed| noise(Element::F32, 256, seed).0);
        let mut out = vec![u128::MAX; 64];
        let scales = memory(&mut scales);
        let product = Product {
            element: Element::Bf16,
            rows: 3,
            inputs: 32,
            outputs: 16,
            x: memory(&mut x),
            weight: memory(&mut weight),
            scales: Some(Scales {
                x: scales,
                weight: scales,
            }),
            bias: None,
            out: memory(&mut out),
        };
        let why = multiply(Place::Cpu, &product).expect_err("not on a CPU");
        let why = why.to_string();
        assert!(why.contains("per-tensor scaling for CPU"), "{why}");
        let why = multiply(
            Place::Cpu,
            &Product {
                inputs: 24,
                ..product
            },
        )
        .expect_err("too narrow");
        assert!(why.to_string().contains("`inputs` is 24"), "{why}");
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (mut x, _) = noise(Element::F32, 8, 1);
        let memory = memory(&mut x);
        let product = Product {
            element: Element::F32,
            rows: 2,
            inputs: 8,
            outputs: 1,
            x: memory,
            weight: memory,
            scales: None,
            bias: None,
            out: memory,
        };
        let why = multiply(Place::Cpu, &product).expect_err("x is too short");
        assert!(why.to_string().contains("`x`"), "{why}");
    }

    #[test]
    fn what_libtorch_says_is_told() {
        // libtorch_cuda is not loaded in tests.
        let why = stream(0).expect_err("there is no CUDA in this process");
        assert!(why.to_string().contains("CUDA"), "{why}");
    }
}
