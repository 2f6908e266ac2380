//! Kernels around the matrix products, against plain loops in double precision.

mod common;

use common::{Number, Random, assert_close, for_all_types};
use realm_cuda::activation::SiluMultiply;
use realm_cuda::norm::AddRmsNorm;
use realm_cuda::rotary::RotateAndStore;
use realm_cuda::rows::{Embed, GatherRows};
use realm_cuda::{HEAD_DIMS, KV_BLOCK};
use realm_cuda_emulator::{Buffer, Emulator};

/// Of widths that are one vector, odd numbers of them, and more than a block has threads.
const WIDTHS: [usize; 5] = [8, 24, 576, 1000, 9000];

#[test]
fn rows_are_added_and_normalized() {
    fn of<T: Number>() {
        let (emulator, mut random) = (Emulator::new(), Random(1));
        for width in WIDTHS {
            for with_delta in [true, false] {
                let rows = 3;
                let hidden: Vec<f32> = random.numbers(rows * width);
                let delta: Vec<T> = random.numbers(rows * width);
                let weight: Vec<f32> = random.numbers(width);
                let eps = 1e-5;
                let on_device = Buffer::of(&hidden);
                let (d, w) = (Buffer::of(&delta), Buffer::of(&weight));
                let out = Buffer::<T>::new(rows * width);
                let norm = AddRmsNorm {
                    element: T::ELEMENT,
                    rows,
                    width,
                    hidden: on_device.memory(),
                    delta: with_delta.then(|| d.memory()),
                    weight: w.memory(),
                    eps,
                    out: out.memory(),
                };
                norm.launch(&emulator).expect("launched");
                for row in 0..rows {
                    let range = row * width..(row + 1) * width;
                    let sums = hidden[range.clone()].iter().zip(&delta[range.clone()]);
                    let x: Vec<f32> = sums
                        .map(|(x, d)| if with_delta { x + d.value() } else { *x })
                        .collect();
                    assert_eq!(on_device.values()[range.clone()], x, "the residual stream");
                    let squares = x.iter().map(|x| f64::from(*x).powi(2));
                    let mean = squares.sum::<f64>() / width as f64;
                    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                    for i in 0..width {
                        let exact = f64::from(x[i]) * scale * f64::from(weight[i]);
                        let got = out.values()[row * width + i];
                        assert_close(got, exact, 1e-6, || {
                            format!("width {width}, row {row}, {i}")
                        });
                    }
                }
            }
        }
    }
    for_all_types!(of);
}

#[test]
fn gates_multiply_ups() {
    fn of<T: Number>() {
        let (emulator, mut random) = (Emulator::new(), Random(2));
        for width in WIDTHS {
            let rows = 3;
            let mut gate_up: Vec<T> = random.numbers(rows * 2 * width);
            // Where the exponential is nothing, or more than any number.
            gate_up[0] = T::of(-200.0);
            gate_up[1] = T::of(200.0);
            gate_up[2] = T::of(0.0);
            let (input, out) = (Buffer::of(&gate_up), Buffer::<T>::new(rows * width));
            let multiply = SiluMultiply {
                element: T::ELEMENT,
                rows,
                width,
                gate_up: input.memory(),
                out: out.memory(),
            };
            multiply.launch(&emulator).expect("launched");
            for row in 0..rows {
                for i in 0..width {
                    let gate = f64::from(gate_up[row * 2 * width + i].value());
                    let up = f64::from(gate_up[(row * 2 + 1) * width + i].value());
                    let exact = gate / (1.0 + (-gate).exp()) * up;
                    let got = out.values()[row * width + i];
                    assert_close(got, exact, 1e-6, || {
                        format!("width {width}, row {row}, {i}")
                    });
                }
            }
        }
    }
    for_all_types!(of);
}

#[test]
fn tokens_have_their_rows_of_the_embedding() {
    fn of<T: Number>() {
        let (emulator, mut random) = (Emulator::new(), Random(3));
        for width in WIDTHS {
            let vocab = 11;
            let table: Vec<T> = random.numbers(vocab * width);
            // The last of them stand for what slots drew: token 7, nothing, and a slot that there is not.
            let tokens = [0, 10, 11, 4, -2, -1, -3];
            let expected = [Some(0), Some(10), None, Some(4), Some(7), None, None];
            let (device_table, device_tokens) = (Buffer::of(&table), Buffer::of(&tokens));
            let drawn = Buffer::of(&[-1, 7]);
            let hidden = Buffer::<f32>::new(tokens.len() * width);
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
            embed.launch(&emulator).expect("launched");
            for (row, token) in hidden.values().chunks(width).zip(expected) {
                for (i, value) in row.iter().enumerate() {
                    let exact = token.map_or(0.0, |token: usize| table[token * width + i].value());
                    assert_eq!(*value, exact, "token {token:?}");
                }
            }
        }
    }
    for_all_types!(of);
}

#[test]
fn wanted_rows_are_gathered() {
    fn of<T: Number>() {
        let (emulator, mut random) = (Emulator::new(), Random(4));
        for width in WIDTHS {
            let from: Vec<T> = random.numbers(9 * width);
            let rows = [8, 0, -1, 3, 9, 3];
            let (device, wanted) = (Buffer::of(&from), Buffer::of(&rows));
            let to = Buffer::<T>::new(rows.len() * width);
            let gather = GatherRows {
                element: T::ELEMENT,
                wanted: rows.len(),
                count: 9,
                width,
                from: device.memory(),
                rows: wanted.memory(),
                to: to.memory(),
            };
            gather.launch(&emulator).expect("launched");
            for (got, row) in to.values().chunks(width).zip(rows) {
                let exact = usize::try_from(row).ok().filter(|row| *row < 9);
                for (i, value) in got.iter().enumerate() {
                    let exact = exact.map_or(0.0, |row| from[row * width + i].value());
                    assert_eq!(value.value(), exact, "row {row}");
                }
            }
        }
    }
    for_all_types!(of);
}

/// A step of rows with tokens before and in it, one of them for padding.
struct Step {
    starts: Vec<i32>,
    context: Vec<i32>,
    table: Vec<i32>,
    row_blocks: usize,
    arena_blocks: usize,
    tokens: usize,
}

fn step() -> Step {
    let rows = [(3, 14), (1, 0), (1, -1), (0, 5), (1, 100_000), (20, 31)];
    let row_blocks = 6300;
    let mut table = vec![-7; rows.len() * row_blocks];
    let mut starts = vec![0];
    let mut blocks = 0;
    for (row, (len, context)) in rows.into_iter().enumerate() {
        starts.push(starts[row] + len);
        if len == 0 || context < 0 {
            continue;
        }
        for block in context / 16..=(context + len - 1) / 16 {
            // Not in order.
            table[row * row_blocks + block as usize] = blocks ^ 1;
            blocks += 1;
        }
    }
    Step {
        tokens: starts[rows.len()] as usize,
        starts,
        context: rows.map(|(_, context)| context).to_vec(),
        table,
        row_blocks,
        arena_blocks: blocks as usize + 1,
    }
}

#[test]
fn heads_are_rotated_and_stored() {
    fn of<T: Number>() {
        for head_dim in HEAD_DIMS {
            for (with_norms, heads, kv_heads) in [(false, 6, 2), (true, 9, 9)] {
                rotated_and_stored::<T>(head_dim as usize, with_norms, heads, kv_heads);
            }
        }
    }
    for_all_types!(of);
}

fn rotated_and_stored<T: Number>(head_dim: usize, with_norms: bool, heads: usize, kv_heads: usize) {
    let (emulator, mut random) = (Emulator::new(), Random(5));
    let Step {
        starts,
        context,
        table,
        row_blocks,
        arena_blocks,
        tokens,
    } = step();
    // Two tokens that only pad are not of any row.
    let padded = tokens + 2;
    let width = (heads + 2 * kv_heads) * head_dim;
    let qkv: Vec<T> = random.numbers(padded * width);
    let frequencies: Vec<f32> = (0..head_dim / 2)
        .map(|i| 500_000f64.powf(-2.0 * i as f64 / head_dim as f64) as f32)
        .collect();
    let weights: [Vec<f32>; 2] = [random.numbers(head_dim), random.numbers(head_dim)];
    let eps = 1e-6f32;
    let arena = arena_blocks * kv_heads * KV_BLOCK * head_dim;
    let device_qkv = Buffer::of(&qkv);
    let untouched = T::of(-123.0);
    let (keys, values) = (
        Buffer::of(&vec![untouched; arena]),
        Buffer::of(&vec![untouched; arena]),
    );
    let device_weights = weights.each_ref().map(|w| Buffer::of(w));
    let (f, s) = (Buffer::of(&frequencies), Buffer::of(&starts));
    let (c, t) = (Buffer::of(&context), Buffer::of(&table));
    let rotate = RotateAndStore {
        element: T::ELEMENT,
        head_dim,
        heads,
        kv_heads,
        tokens: padded,
        rows: context.len(),
        row_blocks,
        arena_blocks,
        qkv: device_qkv.memory(),
        keys: keys.memory(),
        values: values.memory(),
        frequencies: f.memory(),
        norms: with_norms.then(|| (device_weights[0].memory(), device_weights[1].memory(), eps)),
        starts: s.memory(),
        context: c.memory(),
        table: t.memory(),
    };
    rotate.launch(&emulator).expect("launched");
    let mut expected_qkv: Vec<f64> = qkv.iter().map(|x| f64::from(x.value())).collect();
    let mut expected_keys = vec![-123.0; arena];
    let mut expected_values = vec![-123.0; arena];
    let half = head_dim / 2;
    for row in 0..context.len() {
        for token in starts[row]..starts[row + 1] {
            if context[row] < 0 {
                continue;
            }
            let position = (context[row] + token - starts[row]) as usize;
            let block = table[row * row_blocks + position / KV_BLOCK] as usize;
            let rotated = |head: &[f64], weight: &[f32]| -> Vec<f64> {
                let mut head = head.to_vec();
                if with_norms {
                    let mean = head.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                    for (x, w) in head.iter_mut().zip(weight) {
                        *x *= scale * f64::from(*w);
                    }
                }
                (0..head_dim)
                    .map(|i| {
                        let angle = f64::from(position as f32 * frequencies[i % half]);
                        let other = if i < half {
                            -head[i + half]
                        } else {
                            head[i - half]
                        };
                        head[i] * angle.cos() + other * angle.sin()
                    })
                    .collect()
            };
            let of_token = &mut expected_qkv[token as usize * width..][..width];
            let slot =
                |h: usize| ((block * kv_heads + h) * KV_BLOCK + position % KV_BLOCK) * head_dim;
            for h in 0..kv_heads {
                let key = rotated(&of_token[(heads + h) * head_dim..][..head_dim], &weights[1]);
                expected_keys[slot(h)..][..head_dim].copy_from_slice(&key);
                let value = &of_token[(heads + kv_heads + h) * head_dim..][..head_dim];
                expected_values[slot(h)..][..head_dim].copy_from_slice(value);
            }
            for head in of_token[..heads * head_dim].chunks_mut(head_dim) {
                let query = rotated(head, &weights[0]);
                head.copy_from_slice(&query);
            }
        }
    }
    for (name, got, exact) in [
        ("qkv", &device_qkv, expected_qkv),
        ("keys", &keys, expected_keys),
        ("values", &values, expected_values),
    ] {
        for (i, (got, exact)) in got.values().iter().zip(exact).enumerate() {
            // A sum of two products: what they lose is relative to them.
            assert_close(*got, exact, 2e-5, || {
                format!("{name}[{i}], heads of {head_dim}")
            });
        }
    }
}

#[test]
fn angles_are_exact_at_any_position() {
    // Heads of ones, then zeros: what is rotated is the cosine, then the sine.
    let (tokens, first, half) = (256, 130_000, 128);
    let qkv: Vec<f32> = (0..tokens * 6 * half)
        .map(|i| if i / half % 2 == 0 { 1.0 } else { 0.0 })
        .collect();
    let frequencies: Vec<f32> = (0..half)
        .map(|i| 10_000f64.powf(-(i as f64) / half as f64) as f32)
        .collect();
    let device_qkv = Buffer::of(&qkv);
    let arena = Buffer::<f32>::new(KV_BLOCK * 2 * half);
    let (f, s) = (Buffer::of(&frequencies), Buffer::of(&[0, tokens as i32]));
    let (c, t) = (Buffer::of(&[first]), Buffer::of(&[-1]));
    let rotate = RotateAndStore {
        element: realm_cuda::Element::F32,
        head_dim: 2 * half,
        heads: 1,
        kv_heads: 1,
        tokens,
        rows: 1,
        row_blocks: 1,
        arena_blocks: 1,
        qkv: device_qkv.memory(),
        keys: arena.memory(),
        values: arena.memory(),
        frequencies: f.memory(),
        norms: None,
        starts: s.memory(),
        context: c.memory(),
        table: t.memory(),
    };
    rotate.launch(&Emulator::new()).expect("launched");
    for (token, row) in device_qkv.values().chunks(6 * half).enumerate() {
        let position = (first as usize + token) as f32;
        for i in 0..half {
            let angle = f64::from(position * frequencies[i]);
            let expected = (angle.cos() as f32, angle.sin() as f32);
            assert_eq!((row[i], row[half + i]), expected, "{position}, pair {i}");
        }
    }
    let nothing = arena.values().iter().all(|x| x.is_nan());
    assert!(nothing, "what has no block is not stored");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let emulator = Emulator::new();
    let small = Buffer::<f32>::new(64);
    let norm = AddRmsNorm {
        element: realm_cuda::Element::F32,
        rows: 2,
        width: 32,
        hidden: small.memory(),
        delta: None,
        weight: small.memory(),
        eps: 1e-5,
        out: small.memory(),
    };
    norm.launch(&emulator).expect("fits");
    let why = |norm: AddRmsNorm| norm.launch(&emulator).expect_err("refused").to_string();
    let message = why(AddRmsNorm { rows: 3, ..norm });
    assert_eq!(
        message,
        "add_rms_norm: `hidden` holds 256 bytes, not [3, 32] elements of 4"
    );
    let message = why(AddRmsNorm { width: 30, ..norm });
    assert_eq!(message, "add_rms_norm: `width` is 30, no multiple of 8");
    let message = why(AddRmsNorm { rows: 0, ..norm });
    assert_eq!(message, "add_rms_norm: `rows` is 0, no multiple of 1");
    let odd = small.memory().part(4, 252).expect("a part");
    let message = why(AddRmsNorm {
        weight: odd,
        ..norm
    });
    assert!(message.contains("`weight` lies at"), "{message}");
    assert_eq!(small.memory().part(200, 57), None);
}
