//! That attention on the device gives what its definition gives, whatever else is in the step.

use half::{bf16, f16};
use realm_cuda::attention::{Decode, Layer, Plan, Prefill, Shape};
use realm_cuda::{Element, HEAD_DIMS, KV_BLOCK};
use realm_cuda_emulator::{Buffer, Emulator};

/// A row of a step: its sequence's number, tokens before the step (-1: it fills up the batch), and tokens in it.
type Row = (u64, i32, usize);

/// A layer, and steps for it.
#[derive(Clone, Copy)]
struct Model {
    element: Element,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    decode_tokens: usize,
}

/// What a number of a sequence is for.
#[derive(Clone, Copy)]
enum Kind {
    Query,
    Key,
    Value,
}

/// A number between -2 and 2 that seems random.
fn noise(parts: [u64; 5]) -> f32 {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for part in parts {
        x = (x ^ part).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 29;
    }
    (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

impl Model {
    fn new(element: Element, head_dim: usize, heads: usize, kv_heads: usize) -> Model {
        Model {
            element,
            head_dim,
            heads,
            kv_heads,
            window: None,
            decode_tokens: 1,
        }
    }

    fn encode(&self, values: &[f32]) -> Vec<u8> {
        let encode = |x: &f32| match self.element {
            Element::F32 => x.to_ne_bytes().to_vec(),
            Element::Bf16 => bf16::from_f32(*x).to_ne_bytes().to_vec(),
            Element::F16 => f16::from_f32(*x).to_ne_bytes().to_vec(),
        };
        values.iter().flat_map(encode).collect()
    }

    fn decode(&self, bytes: &[u8]) -> Vec<f32> {
        let decode = |x: &[u8]| match self.element {
            Element::F32 => f32::from_ne_bytes(x.try_into().expect("4 bytes")),
            Element::Bf16 => bf16::from_ne_bytes(x.try_into().expect("2 bytes")).to_f32(),
            Element::F16 => f16::from_ne_bytes(x.try_into().expect("2 bytes")).to_f32(),
        };
        bytes.chunks(self.element.size()).map(decode).collect()
    }

    /// A head of a token, as the element type holds it.
    fn head(&self, sequence: u64, kind: Kind, position: usize, head: usize) -> Vec<f32> {
        let at = |d| {
            noise([
                sequence,
                kind as u64,
                position as u64,
                head as u64,
                d as u64,
            ])
        };
        let values: Vec<f32> = (0..self.head_dim).map(at).collect();
        self.decode(&self.encode(&values))
    }

    /// Results of a row by the definition of attention, in `f64`.
    fn expected(&self, (sequence, context, tokens): Row) -> Vec<f64> {
        let Ok(context) = usize::try_from(context) else {
            return vec![0.0; self.heads * self.head_dim];
        };
        let group = self.heads / self.kv_heads;
        let mut out = Vec::new();
        let of_kv_heads = |kind| -> Vec<Vec<Vec<f32>>> {
            let of = |h| (0..context + tokens).map(move |p| self.head(sequence, kind, p, h));
            (0..self.kv_heads).map(|h| of(h).collect()).collect()
        };
        let (keys, values) = (of_kv_heads(Kind::Key), of_kv_heads(Kind::Value));
        for position in context..context + tokens {
            let low = (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
            for h in 0..self.heads {
                let query = self.head(sequence, Kind::Query, position, h);
                let dot = |key: &Vec<f32>| -> f64 {
                    let products = query.iter().zip(key);
                    products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let keys = &keys[h / group][low..=position];
                let scale = (self.head_dim as f64).sqrt();
                let scores: Vec<f64> = keys.iter().map(|key| dot(key) / scale).collect();
                let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..self.head_dim {
                    let values = values[h / group][low..=position].iter();
                    let sum: f64 = values.zip(&weights).map(|(v, w)| f64::from(v[d]) * w).sum();
                    out.push(sum / total);
                }
            }
        }
        out
    }

    /// Results of each row of a step, on a GPU of so many multiprocessors.
    fn attend(&self, emulator: &Emulator, rows: &[Row], multiprocessors: usize) -> Vec<Vec<u8>> {
        let last = |row: &Row| (row.1 + row.2 as i32) as usize;
        let row_blocks = rows.iter().map(|row| last(row).div_ceil(KV_BLOCK)).max();
        let row_blocks = row_blocks.unwrap_or(0) + 2;
        let shape = Shape {
            element: self.element,
            head_dim: self.head_dim,
            heads: self.heads,
            kv_heads: self.kv_heads,
            window: self.window,
            tokens: rows.iter().map(|row| row.2).sum(),
            rows: rows.len(),
            row_blocks,
            decode_tokens: self.decode_tokens,
        };
        // Blocks lie in no order, and blocks and rows of the table hold what must not be read.
        let arena_blocks = (rows.len() * row_blocks).next_power_of_two();
        let block = |row: usize, i: usize| (row * row_blocks + i) * 5 % arena_blocks;
        let size = self.element.size();
        let arena = arena_blocks * self.kv_heads * KV_BLOCK * self.head_dim * size;
        let (mut keys, mut values) = (Buffer::<u8>::new(arena), Buffer::<u8>::new(arena));
        let mut table = Buffer::of(&vec![-7i32; rows.len() * row_blocks]);
        let mut starts = vec![0i32];
        let mut qkv = Vec::new();
        for (r, row) in rows.iter().enumerate() {
            let (sequence, context, tokens) = *row;
            starts.push(starts[r] + tokens as i32);
            let first = (context + 1).max(0) as usize;
            // Blocks before those that some query sees may serve others by now.
            let low = first.saturating_sub(self.window.unwrap_or(usize::MAX)) / KV_BLOCK * KV_BLOCK;
            for p in low..last(row) {
                let block = block(r, p / KV_BLOCK);
                table.values_mut()[r * row_blocks + p / KV_BLOCK] = block as i32;
                for h in 0..self.kv_heads {
                    let at =
                        ((block * self.kv_heads + h) * KV_BLOCK + p % KV_BLOCK) * self.head_dim;
                    let range = at * size..(at + self.head_dim) * size;
                    let (key, value) = (
                        self.encode(&self.head(sequence, Kind::Key, p, h)),
                        self.encode(&self.head(sequence, Kind::Value, p, h)),
                    );
                    keys.values_mut()[range.clone()].copy_from_slice(&key);
                    values.values_mut()[range].copy_from_slice(&value);
                }
            }
            for t in 0..tokens {
                for h in 0..self.heads {
                    let position = (context.max(0) as usize) + t;
                    qkv.extend(self.encode(&self.head(sequence, Kind::Query, position, h)));
                }
                qkv.extend(vec![0xff; 2 * self.kv_heads * self.head_dim * size]);
            }
        }
        let (qkv, starts) = (Buffer::of(&qkv), Buffer::of(&starts));
        let context = Buffer::of(&rows.iter().map(|row| row.1).collect::<Vec<i32>>());
        let items = Buffer::<u8>::new(shape.items_bytes());
        let width = self.heads * self.head_dim * size;
        let out = Buffer::<u8>::new(shape.tokens * width);
        let layer = Layer {
            qkv: qkv.memory(),
            keys: keys.memory(),
            values: values.memory(),
            arena_blocks,
            table: table.memory(),
            items: items.memory(),
            out: out.memory(),
        };
        let partial = Buffer::<u8>::new(shape.partial_bytes());
        let ended = Buffer::of(&vec![0u8; shape.ended_bytes()]);
        let plan = Plan {
            shape,
            starts: starts.memory(),
            context: context.memory(),
            items: items.memory(),
        };
        plan.launch(emulator).expect("a plan");
        let decode = Decode {
            shape,
            layer,
            partial: partial.memory(),
            ended: ended.memory(),
            multiprocessors,
        };
        decode.launch(emulator).expect("decode");
        let prefill = Prefill {
            shape,
            layer,
            multiprocessors,
        };
        prefill.launch(emulator).expect("prefill");
        assert!(
            ended.values().iter().all(|n| *n == 0),
            "counts that the next launch would find"
        );
        let starts = starts.values().windows(2);
        let row = |pair: &[i32]| {
            out.values()[pair[0] as usize * width..pair[1] as usize * width].to_vec()
        };
        starts.map(row).collect()
    }

    fn check(&self, emulator: &Emulator, rows: &[Row]) {
        let within = match self.element {
            Element::F32 => 1e-5,
            Element::F16 => 2e-3,
            Element::Bf16 => 1.5e-2,
        };
        let results = self.attend(emulator, rows, 3);
        for (row, ours) in rows.iter().zip(&results) {
            let (ours, exact) = (self.decode(ours), self.expected(*row));
            assert_eq!(ours.len(), exact.len());
            for (i, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                assert!(
                    (f64::from(*ours) - exact).abs() <= within,
                    "{:?} heads {}/{} of {}, window {:?}, row {row:?}: number {i} is {ours}, not {exact}",
                    self.element,
                    self.heads,
                    self.kv_heads,
                    self.head_dim,
                    self.window,
                );
            }
        }
    }
}

/// A step of rows of all kinds.
const MIXED: [Row; 10] = [
    (1, 0, 1),
    (2, 37, 1),
    (3, 0, 33),
    (4, -1, 1),
    (5, 300, 1),
    (6, 15, 1),
    (7, 130, 3),
    (8, 16, 1),
    (9, 5, 50),
    (10, -1, 1),
];

#[test]
fn every_variant_gives_the_definition() {
    let emulator = Emulator::new();
    for element in Element::ALL {
        for head_dim in HEAD_DIMS {
            let model = Model::new(element, head_dim as usize, 4, 2);
            model.check(&emulator, &MIXED);
        }
    }
}

#[test]
fn every_group_gives_the_definition() {
    let emulator = Emulator::new();
    for element in [Element::F32, Element::F16] {
        for (heads, kv_heads) in [(2, 2), (3, 1), (8, 2), (7, 1), (8, 1), (32, 2), (20, 1)] {
            let model = Model::new(element, 64, heads, kv_heads);
            model.check(
                &emulator,
                &[(1, 70, 1), (2, 10, 30), (3, 129, 1), (4, 0, 2)],
            );
        }
    }
}

#[test]
fn windows_hide_what_is_before_them() {
    let emulator = Emulator::new();
    for element in [Element::F32, Element::Bf16] {
        for window in [1, 2, 16, 17, 100, 290, 1000] {
            let model = Model {
                window: Some(window),
                ..Model::new(element, 64, 4, 2)
            };
            model.check(&emulator, &MIXED);
        }
    }
}

#[test]
fn long_rows_have_as_many_splits_as_there_may_be() {
    let emulator = Emulator::new();
    for window in [None, Some(8300)] {
        let model = Model {
            window,
            ..Model::new(Element::F16, 64, 2, 1)
        };
        model.check(
            &emulator,
            &[(1, 9003, 1), (2, 255, 1), (3, 256, 1), (4, 8191, 1)],
        );
    }
}

#[test]
fn rows_of_a_few_tokens_are_decoded() {
    let emulator = Emulator::new();
    for element in [Element::F32, Element::Bf16] {
        for window in [None, Some(2), Some(40)] {
            let model = Model {
                window,
                decode_tokens: 5,
                ..Model::new(element, 64, 6, 2)
            };
            let rows = [
                (1, 0, 5),
                (2, 140, 4),
                (3, 13, 5),
                (4, 700, 1),
                (5, 29, 6),
                (6, -1, 1),
            ];
            model.check(&emulator, &rows);
        }
    }
}

#[test]
fn a_row_depends_on_nothing_else_in_the_step() {
    let emulator = Emulator::new();
    for element in Element::ALL {
        let model = Model {
            window: Some(200),
            decode_tokens: 2,
            ..Model::new(element, 128, 8, 2)
        };
        let together = model.attend(&emulator, &MIXED, 3);
        assert!(
            model.attend(&emulator, &MIXED, 100) == together,
            "{element:?}: another grid"
        );
        for (row, result) in MIXED.iter().zip(&together) {
            assert!(
                model.attend(&emulator, &[*row], 1) == [result.clone()],
                "{element:?}: {row:?} alone"
            );
        }
        let mut turned = MIXED;
        turned.reverse();
        let mut others = model.attend(&emulator, &turned, 2);
        others.reverse();
        assert!(others == together, "{element:?}: in another order");
    }
}

/// Rows that a plan gives to decode, and to prefill.
fn planned(emulator: &Emulator, tokens: usize, starts: &[i32], context: &[i32]) -> [Vec<i32>; 2] {
    let shape = Shape {
        element: Element::F32,
        head_dim: 64,
        heads: 4,
        kv_heads: 1,
        window: None,
        tokens,
        rows: context.len(),
        row_blocks: 3,
        decode_tokens: 1,
    };
    let items = Buffer::<i32>::of(&vec![-9; shape.items_bytes() / 4]);
    let (starts, context) = (Buffer::of(starts), Buffer::of(context));
    let plan = Plan {
        shape,
        starts: starts.memory(),
        context: context.memory(),
        items: items.memory(),
    };
    plan.launch(emulator).expect("a plan");
    let (counts, items) = items.values().split_at(4);
    let rows: Vec<i32> = items
        .as_chunks::<8>()
        .0
        .iter()
        .map(|item| item[0])
        .collect();
    let prefilled = &rows[context.values().len()..][..counts[1] as usize];
    [rows[..counts[0] as usize].to_vec(), prefilled.to_vec()]
}

#[test]
fn rows_that_cannot_be_are_left_out() {
    let emulator = Emulator::new();
    // Right, ending before its start, two tokens of none, right, before the beginning of its sequence, too long for
    // the table, ending after the step, and beginning before it.
    let starts = [0, 40, 39, 41, 42, 43, 44, 101, -1, 0];
    let context = [8, 0, -1, 47, -2, 48, 0, 0, 0];
    assert_eq!(
        planned(&emulator, 100, &starts, &context),
        [vec![3], vec![0, 0, 0]]
    );
    // Rows that overlap would need twelve items, and there is room for eleven.
    let [decoded, prefilled] = planned(&emulator, 48, &[0, 48, 0, 48, 0, 48, 0, 48, 0], &[0; 8]);
    assert_eq!(decoded, []);
    assert_eq!(prefilled, [0, 0, 0, 2, 2, 2, 4, 4, 4, 6, 6]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let emulator = Emulator::new();
    let right = Shape {
        element: Element::Bf16,
        head_dim: 128,
        heads: 8,
        kv_heads: 2,
        window: None,
        tokens: 4,
        rows: 4,
        row_blocks: 2,
        decode_tokens: 1,
    };
    let (starts, context) = (Buffer::of(&[0, 1, 2, 3, 4]), Buffer::of(&[0; 4]));
    let items = Buffer::<u8>::new(right.items_bytes());
    let launch = |shape| {
        let plan = Plan {
            shape,
            starts: starts.memory(),
            context: context.memory(),
            items: items.memory(),
        };
        plan.launch(&emulator).map_err(|error| error.to_string())
    };
    launch(right).expect("a plan");
    for (shape, word) in [
        (
            Shape {
                head_dim: 80,
                ..right
            },
            "80 dimensions",
        ),
        (Shape { heads: 7, ..right }, "7 query heads for 2"),
        (
            Shape {
                kv_heads: 0,
                ..right
            },
            "0 kv heads",
        ),
        (
            Shape {
                window: Some(0),
                ..right
            },
            "window of no tokens",
        ),
        (
            Shape {
                decode_tokens: 5,
                ..right
            },
            "20 queries",
        ),
        (
            Shape {
                decode_tokens: 0,
                ..right
            },
            "`decode_tokens` is 0",
        ),
        (Shape { rows: 5, ..right }, "`items` holds"),
        (
            Shape {
                tokens: usize::MAX / 8,
                ..right
            },
            "sizes",
        ),
    ] {
        let error = launch(shape).expect_err(word);
        assert!(error.contains(word), "{error}");
    }
}
