//! Rows by their numbers: of the embedding, and of activations.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, run};
use crate::{Element, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("rows.cu");
const EMBED: &str = "embed";
const GATHER_ROWS: &str = "gather_rows";

pub(crate) fn kernels() -> Vec<Kernel> {
    Kernel::of_all(SOURCE, &[EMBED, GATHER_ROWS])
}

/// The rows of the embedding that tokens name. What is no token has a row of zeros.
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// Type of `table`.
    pub element: Element,
    /// Tokens of the step.
    pub tokens_len: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// Numbers of a row: a multiple of 8.
    pub width: usize,
    /// Slots in `drawn`.
    pub slots: usize,
    /// `[vocab, width]`.
    pub table: Memory,
    /// `[tokens_len]` of `i32`: -1 - s stands for the token that was drawn last in slot s.
    pub tokens: Memory,
    /// `[slots]` of `i32`, as [`Sample`](crate::sample::Sample) leaves it.
    pub drawn: Memory,
    /// `[tokens_len, width]` of `f32`.
    pub hidden: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct EmbedParams {
    table: u64,
    tokens: u64,
    drawn: u64,
    hidden: u64,
    vocab: i32,
    slots: i32,
    width: i32,
    reserved: i32,
}

impl Embed {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(EMBED);
        let size = self.element.size();
        let params = EmbedParams {
            table: check.holds("table", self.table, &[self.vocab, self.width], size, 16)?,
            tokens: check.holds("tokens", self.tokens, &[self.tokens_len], 4, 4)?,
            drawn: check.holds("drawn", self.drawn, &[self.slots], 4, 4)?,
            hidden: check.holds("hidden", self.hidden, &[self.tokens_len, self.width], 4, 16)?,
            vocab: check.width("vocab", self.vocab, 1)?,
            slots: check.index("slots", self.slots)?,
            width: check.width("width", self.width, 8)?,
            reserved: 0,
        };
        let vectors = self.width / (16 / size);
        let threads = vectors.next_multiple_of(32).min(256) as u32;
        let grid = [check.count("tokens", self.tokens_len)?, 1, 1];
        let unit = Unit::new(SOURCE, self.element);
        // SAFETY: the memory holds what the kernel accesses, as was checked; it checks tokens and slots itself.
        unsafe { run(on, unit, EMBED, grid, threads, 0, &params) }
    }
}

/// Copies the rows that are wanted. What is no row becomes zeros.
#[derive(Debug, Clone, Copy)]
pub struct GatherRows {
    /// Type of what is copied.
    pub element: Element,
    /// How many are wanted.
    pub wanted: usize,
    /// Rows of `from`.
    pub count: usize,
    /// Numbers of a row: a multiple of 8.
    pub width: usize,
    /// `[count, width]`.
    pub from: Memory,
    /// `[wanted]` of `i32`.
    pub rows: Memory,
    /// `[wanted, width]`; no part of `from`.
    pub to: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct GatherParams {
    from: u64,
    to: u64,
    rows: u64,
    count: i32,
    bytes: i32,
}

impl GatherRows {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(GATHER_ROWS);
        let size = self.element.size();
        check.width("width", self.width, 8)?;
        let params = GatherParams {
            from: check.holds("from", self.from, &[self.count, self.width], size, 16)?,
            to: check.holds("to", self.to, &[self.wanted, self.width], size, 16)?,
            rows: check.holds("rows", self.rows, &[self.wanted], 4, 4)?,
            count: check.index("count", self.count)?,
            bytes: check.index("width", self.width * size)?,
        };
        let threads = (self.width * size / 16).next_multiple_of(32).min(256) as u32;
        let grid = [check.count("wanted", self.wanted)?, 1, 1];
        let unit = Unit::new(SOURCE, self.element);
        // SAFETY: the memory holds what the kernel accesses, as was checked; it checks row numbers itself.
        unsafe { run(on, unit, GATHER_ROWS, grid, threads, 0, &params) }
    }
}
