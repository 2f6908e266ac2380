//! That attention gives what its definition gives, whatever else is in the step.

use super::agreement::Comparison;
use super::attention::{Model, Placed, Row};
use super::{Fault, Outcome, Scale, Scratch};
use crate::attention::{Plan, Shape};
use crate::{Device, Element, HEAD_DIMS};

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

/// The same at lengths of thousands.
const DEEP: [Row; 10] = [
    (1, 4095, 1),
    (2, 1023, 1),
    (3, 0, 1500),
    (4, -1, 1),
    (5, 6000, 1),
    (6, 2047, 1),
    (7, 3000, 700),
    (8, 17, 1),
    (9, 1000, 130),
    (10, -1, 1),
];

pub(super) fn variants<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    for element in Element::ALL {
        for head_dim in HEAD_DIMS {
            let model = Model::new(element, head_dim as usize, 4, 2);
            model.check(on, &MIXED, &mut comparison)?;
            if scale == Scale::Full {
                model.check(on, &DEEP, &mut comparison)?;
            }
        }
    }
    comparison.outcome()
}

pub(super) fn groups<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    for element in [Element::F32, Element::F16] {
        for (heads, kv_heads) in [(2, 2), (3, 1), (8, 2), (7, 1), (8, 1), (32, 2), (20, 1)] {
            let model = Model::new(element, 64, heads, kv_heads);
            let rows = [(1, 70, 1), (2, 10, 30), (3, 129, 1), (4, 0, 2)];
            model.check(on, &rows, &mut comparison)?;
        }
    }
    comparison.outcome()
}

pub(super) fn windows<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    for element in [Element::F32, Element::Bf16] {
        let of = |window| Model {
            window: Some(window),
            ..Model::new(element, 64, 4, 2)
        };
        for window in [1, 2, 16, 17, 100, 290, 1000] {
            of(window).check(on, &MIXED, &mut comparison)?;
        }
        if scale == Scale::Full {
            for window in [1000, 4096] {
                of(window).check(on, &DEEP, &mut comparison)?;
            }
        }
    }
    comparison.outcome()
}

/// As many splits as there may be.
pub(super) fn long_rows<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    for window in [None, Some(8300)] {
        let model = Model {
            window,
            ..Model::new(Element::F16, 64, 2, 1)
        };
        let rows = [(1, 9003, 1), (2, 255, 1), (3, 256, 1), (4, 8191, 1)];
        model.check(on, &rows, &mut comparison)?;
    }
    comparison.outcome()
}

/// Rows of a few tokens are decoded.
pub(super) fn few_tokens<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let mut comparison = Comparison::default();
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
            model.check(on, &rows, &mut comparison)?;
        }
    }
    comparison.outcome()
}

/// Many rows of a model's heads, of different lengths.
pub(super) fn batch<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let (count, length, heads, kv_heads) = scale.pick((20, 3, 8, 2), (64, 31, 32, 8));
    let rows: Vec<Row> = (0..count).map(|r| (r, r as i32 * length, 1)).collect();
    let mut comparison = Comparison::default();
    for element in Element::ALL {
        let model = Model::new(element, 128, heads, kv_heads);
        model.check(on, &rows, &mut comparison)?;
        if scale == Scale::Full {
            model.check(on, &DEEP, &mut comparison)?;
        }
    }
    comparison.outcome()
}

/// A captured step serves other rows, as long as there are as many.
pub(super) fn graph<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    let rows = scale.pick(MIXED, DEEP);
    let mut turned = rows;
    turned.reverse();
    for element in Element::ALL {
        on.check_margins()?;
        let model = Model::new(element, 64, 4, 2);
        let first = model.step(&rows);
        let placed = Placed::new(on, &first)?;
        let multiprocessors = on.device.multiprocessors();
        // Kernels are to have run before they are captured.
        placed.launch(on.device, multiprocessors)?;
        placed.results(on, &first)?;
        let graph = on
            .device
            .capture(&mut || placed.launch(on.device, multiprocessors))?;
        for rows in [&turned, &rows] {
            let step = model.step(rows);
            placed.replace(on, &step)?;
            on.device.replay(&graph)?;
            let results = placed.results(on, &step)?;
            model.compare(rows, &results, &mut comparison);
        }
    }
    comparison.outcome()
}

/// A row depends on nothing else in the step.
pub(super) fn alone<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    let rows = scale.pick(MIXED, DEEP);
    for element in Element::ALL {
        let model = Model {
            window: Some(scale.pick(200, 3500)),
            decode_tokens: 2,
            ..Model::new(element, 128, 8, 2)
        };
        let together = model.attend(on, &rows, 3)?;
        let again = model.attend(on, &rows, 100)?;
        comparison.fact(again == together, || format!("{model}: another grid"));
        for (row, result) in rows.iter().zip(&together) {
            let alone = model.attend(on, &[*row], 1)?;
            comparison.fact(alone == [result.clone()], || {
                format!("{model}: row {row:?} alone")
            });
        }
        let mut turned = rows;
        turned.reverse();
        let mut others = model.attend(on, &turned, 2)?;
        others.reverse();
        comparison.fact(others == together, || format!("{model}: in another order"));
    }
    comparison.outcome()
}

/// Rows that a plan gives to decode, and to prefill.
fn planned<D: Device>(
    on: &Scratch<'_, D>,
    tokens: usize,
    starts: &[i32],
    context: &[i32],
) -> Result<[Vec<i32>; 2], Fault> {
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
    let items = on.array(&vec![-9i32; shape.items_bytes() / 4])?;
    let (device_starts, device_context) = (on.array(starts)?, on.array(context)?);
    let plan = Plan {
        shape,
        starts: device_starts.memory(),
        context: device_context.memory(),
        items: items.memory(),
    };
    plan.launch(on.device)?;
    let items = on.values(&items)?;
    let rows: Vec<i32> = items[4..].chunks_exact(8).map(|item| item[0]).collect();
    let part = |first: usize, count: i32| {
        let count = usize::try_from(count).ok();
        let part = count.and_then(|count| rows.get(first..first.checked_add(count)?));
        part.map(<[i32]>::to_vec)
            .ok_or_else(|| Fault::Differs(format!("the plan counts {:?} items", &items[..2])))
    };
    Ok([part(0, items[0])?, part(context.len(), items[1])?])
}

/// Rows that cannot be are left out.
pub(super) fn plan<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    // Right, ending before its start, two tokens of none, right, before the beginning of its sequence, too long for
    // the table, ending after the step, and beginning before it.
    let starts = [0, 40, 39, 41, 42, 43, 44, 101, -1, 0];
    let context = [8, 0, -1, 47, -2, 48, 0, 0, 0];
    comparison.same(
        planned(on, 100, &starts, &context)?,
        [vec![3], vec![0, 0, 0]],
        || "rows decoded and prefilled".into(),
    );
    // Rows that overlap would need twelve items, and there is room for eleven.
    let [decoded, prefilled] = planned(on, 48, &[0, 48, 0, 48, 0, 48, 0, 48, 0], &[0; 8])?;
    comparison.same(decoded, vec![], || {
        "rows decoded, of those that overlap".into()
    });
    comparison.same(prefilled, vec![0, 0, 0, 2, 2, 2, 4, 4, 4, 6, 6], || {
        "rows prefilled, of those that overlap".into()
    });
    comparison.outcome()
}
