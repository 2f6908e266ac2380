//! Rotary position embedding, and the storing of keys and values in the arena.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, address, run};
use crate::{Element, HEAD_DIMS, KV_BLOCK, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("rotary.cu");
const ROTATE_AND_STORE: &str = "rotate_and_store";
const THREADS: u32 = 256;

pub(crate) fn kernels() -> Vec<Kernel> {
    Kernel::of_all_heads(SOURCE, &[ROTATE_AND_STORE])
}

/// Rotates the queries of a step's tokens in place, and their keys into a layer of the arena, where the values go
/// too. Each head is first normalized if there are weights for that.
///
/// No two tokens of a step may have the same block and the same position in it. What has no block in the arena is
/// not stored.
#[derive(Debug, Clone, Copy)]
pub struct RotateAndStore {
    /// Type of activations and of the arena.
    pub element: Element,
    /// Dimensions of a head: one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens of the step.
    pub tokens: usize,
    /// Rows of the step.
    pub rows: usize,
    /// Blocks that the table has room for in each row.
    pub row_blocks: usize,
    /// Blocks of the arena.
    pub arena_blocks: usize,
    /// `[tokens, (heads + 2 * kv_heads) * head_dim]`: queries, keys, values.
    pub qkv: Memory,
    /// `[arena_blocks, kv_heads, KV_BLOCK, head_dim]`.
    pub keys: Memory,
    /// The same.
    pub values: Memory,
    /// The angle per position of each pair of dimensions, `[head_dim / 2]` of `f32`.
    pub frequencies: Memory,
    /// Weights of queries and of keys, `[head_dim]` of `f32` each, and what is added to the mean.
    pub norms: Option<(Memory, Memory, f32)>,
    /// First token of each row and the end of the last, `[rows + 1]` of `i32`, ascending.
    pub starts: Memory,
    /// Tokens of each row's sequence before the step, `[rows]` of `i32`; -1 for a row that stores nothing.
    pub context: Memory,
    /// Blocks of each row's sequence, `[rows, row_blocks]` of `i32`.
    pub table: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    qkv: u64,
    keys: u64,
    values: u64,
    frequencies: u64,
    query_norm: u64,
    key_norm: u64,
    starts: u64,
    context: u64,
    table: u64,
    rows: i32,
    row_blocks: i32,
    arena_blocks: i32,
    heads: i32,
    kv_heads: i32,
    eps: f32,
}

impl RotateAndStore {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(ROTATE_AND_STORE);
        let size = self.element.size();
        let head_dim = u32::try_from(self.head_dim).unwrap_or(0);
        check.that(HEAD_DIMS.contains(&head_dim), || {
            format!("heads of {} dimensions", self.head_dim)
        })?;
        let arena = [self.arena_blocks, self.kv_heads, KV_BLOCK, self.head_dim];
        let qkv = [self.tokens, self.heads + 2 * self.kv_heads, self.head_dim];
        let norm = |memory| check.holds("norms", memory, &[self.head_dim], 4, 4);
        let params = Params {
            qkv: check.holds("qkv", self.qkv, &qkv, size, 16)?,
            keys: check.holds("keys", self.keys, &arena, size, 16)?,
            values: check.holds("values", self.values, &arena, size, 16)?,
            frequencies: check.holds(
                "frequencies",
                self.frequencies,
                &[self.head_dim / 2],
                4,
                4,
            )?,
            query_norm: address(self.norms.map(|(query, ..)| norm(query)))?,
            key_norm: address(self.norms.map(|(_, key, _)| norm(key)))?,
            starts: check.holds("starts", self.starts, &[self.rows + 1], 4, 4)?,
            context: check.holds("context", self.context, &[self.rows], 4, 4)?,
            table: check.holds("table", self.table, &[self.rows, self.row_blocks], 4, 4)?,
            rows: check.width("rows", self.rows, 1)?,
            row_blocks: check.index("row_blocks", self.row_blocks)?,
            arena_blocks: check.index("arena_blocks", self.arena_blocks)?,
            heads: check.index("heads", self.heads)?,
            kv_heads: check.index("kv_heads", self.kv_heads)?,
            eps: self.norms.map_or(0.0, |(.., eps)| eps),
        };
        let grid = [check.count("tokens", self.tokens)?, 1, 1];
        let unit = Unit::new(SOURCE, self.element).with_head_dim(head_dim);
        // SAFETY: the memory holds what the kernel accesses, as was checked; it checks block numbers itself, and
        // tokens are those of the grid.
        unsafe { run(on, unit, ROTATE_AND_STORE, grid, THREADS, 0, &params) }
    }
}
