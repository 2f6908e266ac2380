//! Reading memory as quickly as a device can: what everything that reads weights or keys is measured by.

use bytemuck::NoUninit;

use super::agreement::Comparison;
use super::number::Random;
use super::{Outcome, Scale, Scratch};
use crate::catalogue::Source;
use crate::launch::{Check, run};
use crate::{Device, Element, LaunchError, Launcher, Memory, Unit};

pub(super) const SOURCE: Source = Source {
    name: "read.cu",
    text: include_str!("read.cu"),
};
const READ_ALL: &str = "read_all";
const THREADS: usize = 512;

/// Reads all of some memory, and keeps the exclusive or of what each thread read.
#[derive(Debug, Clone, Copy)]
pub struct ReadAll {
    /// What is read: a multiple of 16 bytes.
    pub from: Memory,
    /// Thread blocks that share it.
    pub blocks: usize,
    /// [`ReadAll::out_bytes`].
    pub out: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    from: u64,
    out: u64,
    count: i64,
}

impl ReadAll {
    /// Thread blocks that keep so many multiprocessors busy.
    pub fn blocks_for(multiprocessors: usize) -> usize {
        multiprocessors * 4
    }

    /// Bytes of `out` for so many blocks.
    pub fn out_bytes(blocks: usize) -> usize {
        blocks * THREADS * 4
    }

    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(READ_ALL);
        let bytes = self.from.bytes();
        check.that(bytes > 0 && bytes.is_multiple_of(16), || {
            format!("`from` holds {bytes} bytes, no multiple of 16")
        })?;
        let params = Params {
            from: check.holds("from", self.from, &[bytes], 1, 16)?,
            out: check.holds("out", self.out, &[ReadAll::out_bytes(self.blocks)], 1, 4)?,
            count: (bytes / 16) as i64,
        };
        let grid = [check.count("blocks", self.blocks)?, 1, 1];
        let unit = Unit::new(SOURCE, Element::F32);
        // SAFETY: the memory holds what the kernel accesses, as was checked.
        unsafe { run(on, unit, READ_ALL, grid, THREADS as u32, 0, &params) }
    }
}

/// Every word is read once.
pub(super) fn read_all<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    let mut random = Random(13);
    let mut comparison = Comparison::default();
    for (vectors, blocks) in [
        (1, 1),
        (513, 2),
        (20_000, 3),
        (scale.pick(9_000, 4_000_000), 5),
    ] {
        let words: Vec<u32> = (0..vectors * 4).map(|_| random.bits() as u32).collect();
        let from = on.array(&words)?;
        let out = on.unwritten::<u32>(blocks * THREADS)?;
        let read = ReadAll {
            from: from.memory(),
            blocks,
            out: out.memory(),
        };
        read.launch(on.device)?;
        let got = on.values(&out)?.into_iter().fold(0, |a, b| a ^ b);
        let expected = words.iter().fold(0, |a, b| a ^ b);
        comparison.same(got, expected, || {
            format!("{vectors} vectors read by {blocks} blocks")
        });
    }
    comparison.outcome()
}
