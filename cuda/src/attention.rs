//! Attention over the paged arena: a plan that shares out the work of a step, decode for rows of one token or of a
//! few, and prefill for longer rows.
//!
//! Decode is Flash-Decoding (Dao et al., 2023): the keys of a row are split among thread blocks, whose results are
//! combined. Prefill is FlashAttention-2 (Dao, 2023): tiles of queries go through all of their keys. Both take all
//! query heads of a kv head together, sum in `f32`, and give the softmax of the scores, divided by the square root
//! of `head_dim`, times the values. [`Plan`] says which rows are whose: only decode fills the GPU with one query
//! per row, and only prefill reads keys once for many. A step may hold rows of both.
//!
//! No launch depends on lengths: they are read on the device, so that a graph serves whatever rows come. A row's
//! result depends on the row alone, to the bit, and neither on the rest of the step nor on the size of the grid.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, run};
use crate::{Element, HEAD_DIMS, KV_BLOCK, Kernel, LaunchError, Launcher, Memory, Unit};

const PLAN_SOURCE: Source = source!("attention_plan.cu");
const DECODE_SOURCE: Source = source!("attention_decode.cu");
const PREFILL_SOURCE: Source = source!("attention_prefill.cu");
const PLAN: &str = "attention_plan";
const DECODE: &str = "attention_decode";
const PREFILL: &str = "attention_prefill";

/// Threads of a block of the plan.
const PLAN_THREADS: u32 = 256;
/// Blocks of the arena that a split has at least, and splits that a row has at most.
const SPLIT_BLOCKS: usize = 16;
const SPLITS: usize = 32;
/// Queries of a unit of work of decode, at most.
const UNIT: usize = 16;
/// Bytes of an item of the plan, and before the first.
const ITEM: usize = 32;
const COUNTS: usize = 16;
/// Shared memory of an SM of Hopper, and what each block takes of it besides its own.
const SM_SHARED: usize = 228 << 10;
const BLOCK_SHARED: usize = 1 << 10;

pub(crate) fn kernels() -> Vec<Kernel> {
    let plan = Kernel {
        unit: Unit::new(PLAN_SOURCE, Element::F32),
        name: PLAN,
    };
    let mut kernels = vec![plan];
    kernels.extend(Kernel::of_all_heads(DECODE_SOURCE, &[DECODE]));
    kernels.extend(Kernel::of_all_heads(PREFILL_SOURCE, &[PREFILL]));
    kernels
}

/// Sizes of a layer's attention and of the steps that it serves.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Type of activations and of the arena.
    pub element: Element,
    /// Dimensions of a head: one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each of which serves as many query heads.
    pub kv_heads: usize,
    /// Tokens that a query sees, the last of them its own; all before it if none.
    pub window: Option<usize>,
    /// Tokens of the step.
    pub tokens: usize,
    /// Rows of the step.
    pub rows: usize,
    /// Blocks that the table has room for in each row.
    pub row_blocks: usize,
    /// Tokens of a row that is decoded, at most; rows of more are prefilled. Times the query heads of a kv head
    /// they must not exceed 16, unless they are one.
    pub decode_tokens: usize,
}

impl Shape {
    /// Bytes of [`Plan::items`].
    pub fn items_bytes(&self) -> usize {
        COUNTS + (self.decode_items() + self.prefill_items()) * ITEM
    }

    /// Bytes of [`Decode::partial`]: what splits leave to be combined.
    pub fn partial_bytes(&self) -> usize {
        self.slots() * (self.head_dim + 1) * 4
    }

    /// Bytes of [`Decode::ended`]: a count for each row and unit of work.
    pub fn ended_bytes(&self) -> usize {
        self.rows * self.units_per_split() * 4
    }

    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Splits that a row has at most.
    fn splits(&self) -> usize {
        self.row_blocks.div_ceil(SPLIT_BLOCKS).clamp(1, SPLITS)
    }

    fn decode_items(&self) -> usize {
        self.rows * self.splits()
    }

    fn prefill_items(&self) -> usize {
        self.tokens * self.group() / self.prefill_tile() + self.rows
    }

    fn units_per_split(&self) -> usize {
        self.group().div_ceil(UNIT) * self.kv_heads
    }

    /// Queries of a unit of decode, at most.
    fn unit_queries(&self) -> usize {
        (self.decode_tokens * self.group()).min(UNIT)
    }

    /// Queries that have partial results, at most.
    fn slots(&self) -> usize {
        self.decode_items() * self.units_per_split() * self.unit_queries()
    }

    /// Bytes of a row of a head in shared memory.
    fn shared_row(&self) -> usize {
        self.head_dim * self.element.size() + 16
    }

    /// `Layout` of `attention_decode.cu`: threads, and bytes of shared memory.
    fn decode_layout(&self) -> (u32, usize) {
        let bytes = self.head_dim * self.element.size();
        let warps = if bytes > 512 { 2 } else { 4 };
        let ring = if bytes > 128 { 2 } else { 4 };
        let held = self.element.size() == 2 && self.head_dim <= 128;
        let queries = if held { 16 } else { UNIT * self.shared_row() };
        let statistics = 2 * warps * UNIT * 4 + 16;
        let rings = warps * ring * 2 * KV_BLOCK * self.shared_row();
        (32 * warps as u32, rings + queries + statistics)
    }

    /// `QUERIES` of `attention_prefill.cu`.
    fn prefill_tile(&self) -> usize {
        let two = self.element.size() == 2 && self.head_dim <= 128;
        if two { 128 } else { 64 }
    }

    /// `Layout` of `attention_prefill.cu`: threads, and bytes of shared memory.
    fn prefill_layout(&self) -> (u32, usize) {
        let keys = match (self.element, self.head_dim) {
            (Element::F32, _) => 16,
            (_, ..=128) => 64,
            _ => 32,
        };
        (128, (self.prefill_tile() + 4 * keys) * self.shared_row())
    }

    fn checked(&self, check: &Check) -> Result<u32, LaunchError> {
        let head_dim = u32::try_from(self.head_dim).unwrap_or(0);
        check.that(HEAD_DIMS.contains(&head_dim), || {
            format!("heads of {} dimensions", self.head_dim)
        })?;
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        check.that(
            kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads),
            || format!("{heads} query heads for {kv_heads} kv heads"),
        )?;
        check.that(self.window != Some(0), || "a window of no tokens".into())?;
        check.that(self.decode_tokens > 0, || "`decode_tokens` is 0".into())?;
        let queries = self.decode_tokens.saturating_mul(self.group());
        check.that(self.decode_tokens == 1 || queries <= UNIT, || {
            format!("`decode_tokens` are {queries} queries of a kv head, not up to {UNIT}")
        })?;
        // Whatever the kernels count is below 2^31.
        let counts = [
            (self.tokens, heads),
            (self.row_blocks, KV_BLOCK + SPLITS),
            (self.rows, SPLITS * self.units_per_split()),
            (self.prefill_items(), kv_heads),
        ];
        for (a, b) in counts {
            check.index("sizes", a.saturating_mul(b))?;
        }
        Ok(head_dim)
    }

    /// Thread blocks that work through so many units of work: as many as are resident at once, so that none waits
    /// for another to end, and fewer if there is less to do.
    fn grid(&self, multiprocessors: usize, shared: usize, units: usize) -> [u32; 3] {
        let resident = (SM_SHARED / (shared + BLOCK_SHARED)).max(1);
        let blocks = multiprocessors.max(1).saturating_mul(resident).min(units);
        [u32::try_from(blocks).unwrap_or(u32::MAX).max(1), 1, 1]
    }
}

/// Shares out the work of a step, for all layers with the same window. It comes before their [`Decode`] and
/// [`Prefill`], of the same shape.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Sizes.
    pub shape: Shape,
    /// First token of each row and the end of the last, `[rows + 1]` of `i32`, ascending.
    pub starts: Memory,
    /// Tokens of each row's sequence before the step, `[rows]` of `i32`; -1 for a row of one token that fills up
    /// the batch, and whose result is zero.
    pub context: Memory,
    /// Where the work is written, [`Shape::items_bytes`]. A row that is not within the step, or the table, has
    /// none, and no result.
    pub items: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct PlanParams {
    starts: u64,
    context: u64,
    decode: u64,
    prefill: u64,
    counts: u64,
    rows: i32,
    tokens: i32,
    row_blocks: i32,
    window: i32,
    group: i32,
    most: i32,
    tile: i32,
    room: i32,
}

impl Plan {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(PLAN);
        let shape = &self.shape;
        shape.checked(&check)?;
        let counts = check.holds("items", self.items, &[shape.items_bytes()], 1, 16)?;
        let decode = counts + COUNTS as u64;
        let params = PlanParams {
            starts: check.holds("starts", self.starts, &[shape.rows + 1], 4, 4)?,
            context: check.holds("context", self.context, &[shape.rows], 4, 4)?,
            decode,
            prefill: decode + (shape.decode_items() * ITEM) as u64,
            counts,
            rows: check.index("rows", shape.rows)?,
            tokens: check.index("tokens", shape.tokens)?,
            row_blocks: check.index("row_blocks", shape.row_blocks)?,
            window: window(shape.window),
            group: check.index("heads", shape.group())?,
            most: check.index("decode_tokens", shape.decode_tokens)?,
            tile: check.index("tile", shape.prefill_tile())?,
            room: check.index("items", shape.prefill_items())?,
        };
        let unit = Unit::new(PLAN_SOURCE, Element::F32);
        // SAFETY: the memory holds what the kernel accesses, as was checked; it leaves out what it has no room
        // for.
        unsafe { run(on, unit, PLAN, [1, 1, 1], PLAN_THREADS, 0, &params) }
    }
}

/// A window as kernels know it.
fn window(tokens: Option<usize>) -> i32 {
    tokens.map_or(i32::MAX, |n| n.try_into().unwrap_or(i32::MAX))
}

/// What attention reads and writes in a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// `[tokens, (heads + 2 * kv_heads) * head_dim]`: queries, and then keys and values, which are not read.
    pub qkv: Memory,
    /// Keys of all tokens up to those of the step, `[arena_blocks, kv_heads, KV_BLOCK, head_dim]`.
    pub keys: Memory,
    /// Their values.
    pub values: Memory,
    /// Blocks of the arena.
    pub arena_blocks: usize,
    /// Blocks of each row's sequence, `[rows, row_blocks]` of `i32`, in the memory of the device: it is read again
    /// and again. Only those are read that hold tokens that a query sees.
    pub table: Memory,
    /// What [`Plan`] wrote.
    pub items: Memory,
    /// Results, `[tokens, heads * head_dim]`.
    pub out: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct LayerParams {
    qkv: u64,
    keys: u64,
    values: u64,
    table: u64,
    items: u64,
    count: u64,
    out: u64,
    row_blocks: i32,
    arena_blocks: i32,
    kv_heads: i32,
    group: i32,
    window: i32,
    scale: f32,
}

impl Layer {
    /// Parameters for the items that lie `skipped` after the first, whose count is the one of this number.
    fn params(
        &self,
        shape: &Shape,
        check: &Check,
        skipped: usize,
        count: usize,
    ) -> Result<LayerParams, LaunchError> {
        let (size, head_dim) = (shape.element.size(), shape.head_dim);
        let arena = [self.arena_blocks, shape.kv_heads, KV_BLOCK, head_dim];
        let qkv = [shape.tokens, shape.heads + 2 * shape.kv_heads, head_dim];
        let out = [shape.tokens, shape.heads, head_dim];
        let table = [shape.rows, shape.row_blocks];
        let counts = check.holds("items", self.items, &[shape.items_bytes()], 1, 16)?;
        Ok(LayerParams {
            qkv: check.holds("qkv", self.qkv, &qkv, size, 16)?,
            keys: check.holds("keys", self.keys, &arena, size, 16)?,
            values: check.holds("values", self.values, &arena, size, 16)?,
            table: check.holds("table", self.table, &table, 4, 4)?,
            items: counts + (COUNTS + skipped * ITEM) as u64,
            count: counts + (count * 4) as u64,
            out: check.holds("out", self.out, &out, size, 16)?,
            row_blocks: check.index("row_blocks", shape.row_blocks)?,
            arena_blocks: check.index("arena_blocks", self.arena_blocks)?,
            kv_heads: check.index("kv_heads", shape.kv_heads)?,
            group: check.index("heads", shape.group())?,
            window: window(shape.window),
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        })
    }
}

/// Attention of the rows of up to [`Shape::decode_tokens`] tokens.
#[derive(Debug, Clone, Copy)]
pub struct Decode {
    /// Sizes.
    pub shape: Shape,
    /// What it reads and writes.
    pub layer: Layer,
    /// What splits leave to be combined, [`Shape::partial_bytes`]; only for the time of the launch.
    pub partial: Memory,
    /// [`Shape::ended_bytes`], all zero before the first launch. Every launch leaves zeros.
    pub ended: Memory,
    /// Multiprocessors of the device.
    pub multiprocessors: usize,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct DecodeParams {
    layer: LayerParams,
    partial: u64,
    log_sums: u64,
    ended: u64,
    slots: i32,
    reserved: i32,
}

impl Decode {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(DECODE);
        let shape = &self.shape;
        let head_dim = shape.checked(&check)?;
        let partial = check.holds("partial", self.partial, &[shape.partial_bytes()], 1, 16)?;
        let params = DecodeParams {
            layer: self.layer.params(shape, &check, 0, 0)?,
            partial,
            log_sums: partial + (shape.slots() * shape.head_dim * 4) as u64,
            ended: check.holds("ended", self.ended, &[shape.ended_bytes()], 1, 4)?,
            slots: check.index("slots", shape.unit_queries())?,
            reserved: 0,
        };
        let unit = Unit::new(DECODE_SOURCE, shape.element).with_head_dim(head_dim);
        let (threads, shared) = shape.decode_layout();
        let units = shape.decode_items() * shape.units_per_split();
        let grid = shape.grid(self.multiprocessors, shared, units);
        // SAFETY: the memory holds what the kernel accesses, as was checked; its rows and tokens are those of the
        // plan, and it checks block numbers itself.
        unsafe { run(on, unit, DECODE, grid, threads, shared, &params) }
    }
}

/// Attention of the rows of more than [`Shape::decode_tokens`] tokens.
#[derive(Debug, Clone, Copy)]
pub struct Prefill {
    /// Sizes.
    pub shape: Shape,
    /// What it reads and writes.
    pub layer: Layer,
    /// Multiprocessors of the device.
    pub multiprocessors: usize,
}

impl Prefill {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(PREFILL);
        let shape = &self.shape;
        let head_dim = shape.checked(&check)?;
        let params = self.layer.params(shape, &check, shape.decode_items(), 1)?;
        let unit = Unit::new(PREFILL_SOURCE, shape.element).with_head_dim(head_dim);
        let (threads, shared) = shape.prefill_layout();
        let grid = shape.grid(
            self.multiprocessors,
            shared,
            shape.prefill_items() * shape.kv_heads,
        );
        // SAFETY: as for decode.
        unsafe { run(on, unit, PREFILL, grid, threads, shared, &params) }
    }
}
