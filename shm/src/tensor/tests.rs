use super::*;
use crate::AlignedBuf;
use proptest::prelude::*;

/// One tensor to write: type, shape, and bytes to take its elements from.
#[derive(Debug, Clone)]
struct Sample {
    dtype: DType,
    shape: Vec<usize>,
    seed: u8,
}

fn sample() -> impl Strategy<Value = Sample> {
    let dtype = prop::sample::select(DType::ALL.to_vec());
    let shape = prop::collection::vec(0usize..6, 0..=MAX_RANK);
    (dtype, shape, any::<u8>()).prop_map(|(dtype, shape, seed)| Sample { dtype, shape, seed })
}

/// Runs `$body` with `$T` as the Rust type of a [`DType`].
macro_rules! with_type {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::U8 => {
                type $T = u8;
                $body
            }
            DType::I32 => {
                type $T = i32;
                $body
            }
            DType::I64 => {
                type $T = i64;
                $body
            }
            DType::U32 => {
                type $T = u32;
                $body
            }
            DType::U64 => {
                type $T = u64;
                $body
            }
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
        }
    };
}

impl Sample {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn fill(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.elements() * self.dtype.bytes());
        bytes
            .iter_mut()
            .enumerate()
            .for_each(|(i, byte)| *byte = self.seed.wrapping_add(i as u8));
    }

    fn write(&self, writer: &mut TensorWriter<'_>) -> Result<(), TensorError> {
        with_type!(self.dtype, T => {
            self.fill(bytemuck::cast_slice_mut(writer.tensor::<T>(&self.shape)?));
            Ok(())
        })
    }

    fn assert_read(&self, reader: &TensorReader<'_>, index: usize) {
        let mut expected = vec![0; self.elements() * self.dtype.bytes()];
        self.fill(&mut expected);
        with_type!(self.dtype, T => {
            let (elements, dims) = reader.tensor::<T>(index).unwrap();
            assert_eq!(bytemuck::cast_slice::<T, u8>(elements), expected);
            assert_eq!(elements.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(dims.iter().map(|dim| *dim as usize).collect::<Vec<_>>(), self.shape);
        });
    }
}

fn written(samples: &[Sample]) -> AlignedBuf {
    let mut buffer = AlignedBuf::new();
    let tensors: Vec<_> = samples.iter().map(|s| (s.dtype, s.elements())).collect();
    buffer.resize(required(&tensors));
    buffer.fill(0xa5);
    let mut writer = TensorWriter::new(&mut buffer, samples.len()).unwrap();
    samples
        .iter()
        .for_each(|sample| sample.write(&mut writer).unwrap());
    assert_eq!(writer.finish(), buffer.len(), "required() is exact");
    buffer
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn what_was_written_is_read(samples in prop::collection::vec(sample(), 0..6)) {
        let buffer = written(&samples);
        let reader = TensorReader::new(&buffer).unwrap();
        prop_assert_eq!(reader.count(), samples.len());
        for (index, sample) in samples.iter().enumerate() {
            sample.assert_read(&reader, index);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn a_slot_one_byte_short_is_refused(samples in prop::collection::vec(sample(), 1..6)) {
        let whole = written(&samples);
        let mut buffer = AlignedBuf::new();
        buffer.resize(whole.len() - 1);
        let fits = TensorWriter::new(&mut buffer, samples.len())
            .and_then(|mut writer| samples.iter().try_for_each(|sample| sample.write(&mut writer)));
        let refused = matches!(fits, Err(TensorError::Room { .. }));
        prop_assert!(refused);
        // The reader is told the same by a length that cuts the last tensor off.
        prop_assert!(TensorReader::new(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn arbitrary_bytes_never_panic_nor_lead_outside(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzz::tensors(&bytes);
    }

    /// Arbitrary bytes hardly ever get past the first check; these mostly do.
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn changed_words_never_panic_nor_lead_outside(
        samples in prop::collection::vec(sample(), 1..6),
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0u32..300, any::<u32>()]), 1..4),
    ) {
        let mut buffer = written(&samples);
        let header = 1 + samples.len() * DESCRIPTOR;
        for (word, value) in changes {
            let at = 4 * word.index(header);
            buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        crate::fuzz::tensors(&buffer);
    }
}

/// One valid tensor `f32[2, 3]`, with one word of its description changed.
fn refused(word: usize, value: u32) -> &'static str {
    let mut buffer = written(&[Sample {
        dtype: DType::F32,
        shape: vec![2, 3],
        seed: 0,
    }]);
    let at = 4 + 4 * word;
    buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
    match TensorReader::new(&buffer).unwrap_err() {
        TensorError::Invalid { index: 0, reason } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn every_field_is_checked() {
    assert_eq!(refused(0, 0), "unknown type");
    assert_eq!(refused(0, 99), "unknown type");
    assert_eq!(
        refused(0, DType::U8 as u32),
        "its shape and its number of bytes differ"
    );
    assert_eq!(refused(1, 5), "too many dimensions");
    assert_eq!(refused(1, 1), "more sizes than dimensions");
    assert_eq!(refused(2, 4), "its shape and its number of bytes differ");
    assert_eq!(refused(5, 1), "more sizes than dimensions");
    assert_eq!(refused(6, 0), "its data lies outside the slot");
    assert_eq!(refused(6, 65), "its data is not aligned");
    assert_eq!(refused(6, 128), "its data lies outside the slot");
    assert_eq!(refused(6, !63), "its data lies outside the slot");
    assert_eq!(refused(7, 20), "its shape and its number of bytes differ");
}

#[test]
fn a_count_larger_than_the_slot_is_refused() {
    let mut buffer = AlignedBuf::new();
    buffer.resize(64);
    buffer.fill(0);
    assert_eq!(TensorReader::new(&buffer).unwrap().count(), 0);
    for count in [2, u32::MAX] {
        buffer[..4].copy_from_slice(&count.to_le_bytes());
        assert_eq!(
            TensorReader::new(&buffer).unwrap_err(),
            TensorError::Count { count, len: 64 }
        );
    }
    let short = TensorReader::new(&buffer[..3]).unwrap_err();
    assert_eq!(short, TensorError::Room { needed: 4, len: 3 });
}

#[test]
fn misuse_is_an_error() {
    let mut buffer = AlignedBuf::new();
    buffer.resize(256);
    assert_eq!(
        TensorReader::new(&buffer[4..]).unwrap_err(),
        TensorError::Misaligned
    );
    assert_eq!(
        TensorWriter::new(&mut buffer[4..], 1).unwrap_err(),
        TensorError::Misaligned
    );
    assert!(TensorWriter::new(&mut buffer, usize::MAX).is_err());

    let mut writer = TensorWriter::new(&mut buffer, 1).unwrap();
    assert!(matches!(
        writer.tensor::<u8>(&[1; 5]),
        Err(TensorError::Shape(_))
    ));
    assert!(matches!(
        writer.tensor::<u8>(&[1 << 32]),
        Err(TensorError::Shape(_))
    ));
    let huge = u32::MAX as usize;
    assert!(matches!(
        writer.tensor::<u8>(&[huge, huge, huge]),
        Err(TensorError::Shape(_))
    ));
    assert!(matches!(
        writer.tensor::<u8>(&[huge]),
        Err(TensorError::Room { .. })
    ));
    // What was refused leaves no trace.
    writer
        .tensor::<i32>(&[2])
        .unwrap()
        .copy_from_slice(&[7, -7]);
    assert_eq!(
        writer.tensor::<u8>(&[1]).unwrap_err(),
        TensorError::Capacity(1)
    );
    let used = writer.finish();
    assert_eq!(used, 64 + 8);

    let reader = TensorReader::new(&buffer[..used]).unwrap();
    assert_eq!(
        reader.tensor::<i32>(0).unwrap(),
        (&[7, -7][..], &[2u32][..])
    );
    let (found, expected) = (DType::I32, DType::F32);
    assert_eq!(
        reader.tensor::<f32>(0),
        Err(TensorError::Type {
            index: 0,
            found,
            expected
        })
    );
    assert_eq!(
        reader.tensor::<i32>(1),
        Err(TensorError::Missing { index: 1, count: 1 })
    );
}

#[test]
fn absurd_requirements_saturate() {
    assert_eq!(required(&[(DType::F32, usize::MAX)]), usize::MAX);
    assert_eq!(
        required(&[(DType::U8, usize::MAX), (DType::U8, 1)]),
        usize::MAX
    );
    assert_eq!(required(&[]), 64);
}
