//! What a device does besides kernels and products: its memory, and graphs.

use super::agreement::Comparison;
use super::number::{Number, Random, for_all_types};
use super::scratch::Array;
use super::{Fault, Outcome, Scale, Scratch, product};
use crate::rows::GatherRows;
use crate::{Device, DeviceError, Element, Product};

pub(super) fn memory<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut comparison = Comparison::default();
    let (free, total) = on.device.memory()?;
    comparison.fact(0 < free && free <= total, || {
        format!("{free} of {total} bytes are free")
    });
    let multiprocessors = on.device.multiprocessors();
    comparison.fact(multiprocessors > 0, || "no multiprocessors".into());
    let mut random = Random(7);
    for len in [1, 15, 16, 4097, scale.pick(100_000, 50_000_000)] {
        let first: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
        let mut other = vec![0x5a; len / 2];
        let array = on.array(&first)?;
        let aligned = array.address().is_multiple_of(16);
        comparison.fact(aligned, || {
            format!("{:#x} is no multiple of 16", array.address())
        });
        // What is written may change at once.
        on.set(&array, &other)?;
        other.fill(0);
        let mut expected = first.clone();
        expected[..len / 2].fill(0x5a);
        let got = on.values(&array)?;
        comparison.fact(got == expected, || {
            format!("{len} bytes, of which the first half was written again")
        });
        let mut more = vec![0; len + 1];
        let refused =
            |result: Result<(), DeviceError>| matches!(result, Err(DeviceError::Bounds { .. }));
        let read = refused(on.device.read(array.memory(), &mut more));
        let written = refused(on.device.write(array.memory(), &more));
        comparison.fact(read && written, || {
            format!("{} bytes are copied to or from memory of {len}", len + 1)
        });
        landings(on, &array, &expected, &mut comparison)?;
    }
    comparison.outcome()
}

/// What is sent is what was there then, and arrives where it should.
fn landings<D: Device>(
    on: &Scratch<'_, D>,
    array: &Array<u8>,
    holds: &[u8],
    comparison: &mut Comparison,
) -> Result<(), Fault> {
    let len = holds.len();
    let mut landing = on.device.landing(2 * len)?;
    on.device.send(array.memory(), &mut landing, 0)?;
    let turned: Vec<u8> = holds.iter().rev().copied().collect();
    on.set(array, &turned)?;
    on.device.send(array.memory(), &mut landing, len)?;
    on.set(array, &vec![0; len])?;
    let there = on.device.landed(&mut landing)? == [holds, &turned].concat();
    comparison.fact(there, || {
        format!("{len} bytes that were sent, and others after them")
    });
    let landed = on.device.has_landed(&landing)?;
    comparison.fact(landed, || format!("{len} bytes that were there are not"));
    let beyond = on.device.send(array.memory(), &mut landing, len + 1);
    comparison.fact(beyond.is_err(), || {
        format!("{len} bytes are sent beyond a landing")
    });
    Ok(())
}

/// A product, and the rows of it that are wanted.
struct Work<T> {
    rows: usize,
    inputs: usize,
    outputs: usize,
    weight: Vec<T>,
    x: Array<T>,
    device_weight: Array<T>,
    out: Array<T>,
    wanted: Array<i32>,
    gathered: Array<T>,
}

impl<T: Number> Work<T> {
    fn new<D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        random: &mut Random,
    ) -> Result<Work<T>, Fault> {
        let (rows, inputs, outputs) = scale.pick((3, 64, 40), (64, 4096, 1024));
        let weight: Vec<T> = random.numbers(outputs * inputs);
        Ok(Work {
            rows,
            inputs,
            outputs,
            x: on.array(&random.numbers::<T>(rows * inputs))?,
            device_weight: on.array(&weight)?,
            weight,
            out: on.unwritten(rows * outputs)?,
            wanted: on.array(&[0, 0])?,
            gathered: on.unwritten(2 * outputs)?,
        })
    }

    fn ask(&self, device: &impl Device) -> Result<(), DeviceError> {
        device.multiply(&Product {
            element: T::ELEMENT,
            rows: self.rows,
            inputs: self.inputs,
            outputs: self.outputs,
            x: self.x.memory(),
            weight: self.device_weight.memory(),
            scales: None,
            bias: None,
            out: self.out.memory(),
        })?;
        let gather = GatherRows {
            element: T::ELEMENT,
            wanted: 2,
            count: self.rows,
            width: self.outputs,
            from: self.out.memory(),
            rows: self.wanted.memory(),
            to: self.gathered.memory(),
        };
        Ok(gather.launch(device)?)
    }
}

pub(super) fn graph<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        on.check_margins()?;
        let mut random = Random(8);
        let work = Work::<T>::new(on, scale, &mut random)?;
        work.ask(on.device)?;
        on.values(&work.gathered)?;
        let nothing = vec![T::of(77.0); 2 * work.outputs];
        on.set(&work.gathered, &nothing)?;
        let graph = on.device.capture(&mut || work.ask(on.device))?;
        let untouched = on.values(&work.gathered)?.iter().all(|x| x.value() == 77.0);
        comparison.fact(untouched, || "what is captured is carried out".into());
        for replay in 0..3 {
            // It reads what is there by now, also where rows lie.
            let x: Vec<T> = random.numbers(work.rows * work.inputs);
            let wanted = [random.below(work.rows), random.below(work.rows)];
            on.set(&work.x, &x)?;
            on.set(&work.wanted, &wanted.map(|row| row as i32))?;
            on.device.replay(&graph)?;
            let gathered = on.values(&work.gathered)?;
            for (row, got) in wanted.into_iter().zip(gathered.chunks_exact(work.outputs)) {
                let x = &x[row * work.inputs..][..work.inputs];
                let weights = work.weight.chunks_exact(work.inputs);
                for (o, (got, weight)) in got.iter().zip(weights).enumerate() {
                    product::compare(comparison, *got, x, weight, T::of(0.0), || {
                        format!("{}, replay {replay}, row {row}, {o}", T::ELEMENT.name())
                    });
                }
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    refusals(on, scale, &mut comparison)?;
    comparison.outcome()
}

/// A capture that fails leaves nothing behind.
fn refusals<D: Device>(
    on: &Scratch<'_, D>,
    scale: Scale,
    comparison: &mut Comparison,
) -> Result<(), Fault> {
    let mut random = Random(9);
    let work = Work::<f32>::new(on, scale, &mut random)?;
    work.ask(on.device)?;
    let gathered = on.values(&work.gathered)?;
    let failed = on.device.capture(&mut || {
        work.ask(on.device)?;
        let wrong = Product {
            element: Element::F32,
            rows: 0,
            inputs: 1,
            outputs: 1,
            x: work.x.memory(),
            weight: work.x.memory(),
            scales: None,
            bias: None,
            out: work.out.memory(),
        };
        on.device.multiply(&wrong)
    });
    let told = matches!(failed, Err(DeviceError::Launch(_)));
    comparison.fact(told, || {
        "a capture of what cannot be asked for succeeds".into()
    });
    let read = on.device.capture(&mut || {
        work.ask(on.device)?;
        on.device.read(work.out.memory(), &mut [0; 4])
    });
    comparison.fact(read.is_err(), || {
        "memory is read while a graph is captured".into()
    });
    on.set(&work.gathered, &vec![0.0; 2 * work.outputs])?;
    work.ask(on.device)?;
    let again = on.values(&work.gathered)?;
    comparison.fact(again == gathered, || {
        "a product differs from itself before a capture that failed".into()
    });
    Ok(())
}
