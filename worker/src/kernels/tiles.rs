//! Matrix units: Intel's AMX, whose registers are tiles of sixteen rows of 64 bytes.
//!
//! One instruction multiplies sixteen rows of 32 `bf16` with 32 by sixteen of them: for each of 256 outputs it
//! adds the products of sixteen pairs to a sum in `f32`, in an order of its own. An output depends on its own row and
//! column alone. Rust's intrinsics for it are not stable, so the few loops that are needed are assembly.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::marker::PhantomData;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::bf16;

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod emulator;

/// Rows of a tile, and `f32` in a row.
pub(super) const TILE: usize = 16;
/// `bf16` in a row of a tile: inputs that one instruction takes in.
pub(super) const DEPTH: usize = 32;

/// Tiles that one row of tiles is multiplied with at once.
pub(super) const TILES: usize = 4;

/// Sixteen rows of as many `bf16` as an instruction takes in.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(super) struct Rows(pub(super) [[bf16; DEPTH]; TILE]);

/// Weights of sixteen tokens for each of sixteen queries.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Weighed(pub(super) [[bf16; TILE]; TILE]);

impl Weighed {
    pub(super) const ZERO: Weighed = Weighed([[bf16::ZERO; TILE]; TILE]);
}

impl Rows {
    pub(super) const ZERO: Rows = Rows([[bf16::ZERO; DEPTH]; TILE]);
}

/// Proof that the CPU has matrix units for `bf16` and that the system lets this process use them.
#[derive(Clone, Copy)]
pub(super) struct Tiles(());

impl Tiles {
    /// None where there are no such units, or the system or a hypervisor keeps them from us.
    pub(super) fn detect() -> Option<Tiles> {
        // Asked for once: a virtual machine's CPU takes its time to describe itself.
        static FOUND: LazyLock<bool> = LazyLock::new(|| super::cpu::has_tiles() && permit());
        FOUND.then_some(Tiles(()))
    }

    /// The units of this CPU, or emulated ones where it has none; None where neither can be.
    #[cfg(test)]
    pub(super) fn of_any_cpu() -> Option<Tiles> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if !super::cpu::announces_tiles() {
            emulator::install();
            return Some(Tiles(()));
        }
        Tiles::detect()
    }

    /// Prepares the units of this thread.
    #[inline]
    pub(super) fn configure(self, shapes: &Shapes) -> Configured {
        // SAFETY: the units are there, for `self` proves it, and take these shapes: every tile of all that
        // `Shapes` can be has at most sixteen rows of at most 64 bytes, and none has only one of both.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly));
        }
        Configured(PhantomData)
    }
}

/// Asks the system for the state of tiles, which threads do not have room for otherwise.
#[cfg(target_arch = "x86_64")]
fn permit() -> bool {
    /// The call's name for such requests, and what it is that we want.
    const REQUEST: i32 = 0x1023;
    const TILE_DATA: i32 = 18;
    // SAFETY: it takes two numbers and changes nothing that the program could see.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn permit() -> bool {
    false
}

/// What the units are told about the tiles: Intel's palette 1.
#[repr(C, align(64))]
pub(super) struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    widths: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Eight whole tiles.
    pub(super) const WHOLE: Shapes = Shapes::whole();

    /// Tile 6 is of weights, tile 7 of values of one block of tokens; the others are whole.
    pub(super) const ATTENTION: Shapes = {
        let mut shapes = Shapes::whole();
        shapes.widths[6] = size_of::<[bf16; TILE]>() as u16;
        shapes.rows[7] = TILE as u8 / 2;
        shapes
    };

    const fn whole() -> Shapes {
        let (mut widths, mut rows) = ([0; 16], [0; 16]);
        let mut i = 0;
        while i < 8 {
            (widths[i], rows[i]) = (64, TILE as u8);
            i += 1;
        }
        Shapes {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            widths,
            rows,
        }
    }
}

/// Units that are prepared, of one thread. While they are, whatever interrupts it saves their tiles, too.
pub(super) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the units are there, for this proves it, and nobody needs the tiles any more.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

/// A product of rows with a part of a panel: a sum for each row and output over all steps, of as many inputs as an
/// instruction takes in.
pub(super) struct Product {
    /// For each sixteen rows what they have of the first step; that of the next ones follows.
    pub(super) rows: [*const Rows; 2],
    /// Sixteen lines of pairs for the first step, each [`LINE`](Self::LINE) bytes from the one before.
    pub(super) panel: *const u8,
    pub(super) steps: usize,
    /// Where the sums go, row after row.
    pub(super) sums: *mut f32,
    /// Memory to have brought in meanwhile, and how many cache lines of it in each step. Any address will do.
    pub(super) ahead: *const u8,
    pub(super) lines: usize,
}

impl Product {
    /// Bytes from one pair of inputs to the next in a panel of 64 outputs.
    const LINE: usize = 256;
}

#[cfg(target_arch = "x86_64")]
impl Configured {
    /// Sixteen rows by 64 outputs.
    ///
    /// # Safety
    /// The units must be configured for [whole](Shapes::WHOLE) tiles; the first of `rows` and `panel` must hold
    /// all steps, and the sums must be sixteen rows of 64 that nobody else touches.
    #[inline(always)]
    pub(super) unsafe fn by_panel(&self, product: &Product) {
        const WIDTH: usize = TILES * TILE;
        // SAFETY: reads and writes what the caller vouches for, and no registers but those named. The compiler
        // never uses tiles itself, for it is not told that the CPU has them.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{rows} + {row}*1]",
                "tileloadd tmm5, [{panel} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{panel} + {line}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{panel} + {line}*1 + 128]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{panel} + {line}*1 + 192]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "mov {n}, {lines}",
                "test {n}, {n}",
                "jz 5f",
                "4:",
                "prefetcht1 [{ahead}]",
                "add {ahead}, 64",
                "dec {n}",
                "jnz 4b",
                "5:",
                "add {rows}, 1024",
                "add {panel}, 4096",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {width}*1], tmm0",
                "tilestored [{sums} + {width}*1 + 64], tmm1",
                "tilestored [{sums} + {width}*1 + 128], tmm2",
                "tilestored [{sums} + {width}*1 + 192], tmm3",
                rows = inout(reg) product.rows[0] => _,
                row = in(reg) size_of::<[bf16; DEPTH]>(),
                panel = inout(reg) product.panel => _,
                line = in(reg) Product::LINE,
                steps = inout(reg) product.steps => _,
                sums = in(reg) product.sums,
                width = in(reg) WIDTH * size_of::<f32>(),
                ahead = inout(reg) product.ahead => _,
                lines = in(reg) product.lines,
                n = out(reg) _,
                options(nostack),
            );
        }
    }

    /// 32 rows by 32 outputs: half as much to load for as many products.
    ///
    /// # Safety
    /// As of [`by_panel`](Self::by_panel), but with all `rows`, and 32 rows of 32 sums.
    #[inline(always)]
    pub(super) unsafe fn by_half_panel(&self, product: &Product) {
        const WIDTH: usize = TILES / 2 * TILE;
        // SAFETY: as above.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{rows} + {row}*1]",
                "tileloadd tmm6, [{panel} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{panel} + {line}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{more} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "mov {n}, {lines}",
                "test {n}, {n}",
                "jz 5f",
                "4:",
                "prefetcht1 [{ahead}]",
                "add {ahead}, 64",
                "dec {n}",
                "jnz 4b",
                "5:",
                "add {rows}, 1024",
                "add {more}, 1024",
                "add {panel}, 4096",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {width}*1], tmm0",
                "tilestored [{sums} + {width}*1 + 64], tmm1",
                "tilestored [{sums} + {width}*1 + 2048], tmm2",
                "tilestored [{sums} + {width}*1 + 2112], tmm3",
                rows = inout(reg) product.rows[0] => _,
                more = inout(reg) product.rows[1] => _,
                row = in(reg) size_of::<[bf16; DEPTH]>(),
                panel = inout(reg) product.panel => _,
                line = in(reg) Product::LINE,
                steps = inout(reg) product.steps => _,
                sums = in(reg) product.sums,
                width = in(reg) WIDTH * size_of::<f32>(),
                ahead = inout(reg) product.ahead => _,
                lines = in(reg) product.lines,
                n = out(reg) _,
                options(nostack),
            );
        }
    }

    /// Scores of sixteen queries against the tokens of four blocks: sixteen rows of 64.
    ///
    /// # Safety
    /// The units must be configured for [attention](Shapes::ATTENTION), and each of `keys` must have as many tiles as
    /// `queries`.
    #[inline(always)]
    pub(super) unsafe fn scores(
        &self,
        queries: &[Rows],
        keys: [*const u8; TILES],
        into: &mut [f32],
    ) {
        assert!(!queries.is_empty() && into.len() == TILE * TILES * TILE);
        let [a, b, c, d] = keys;
        // SAFETY: reads what the caller vouches for and writes all of `into`; for registers see above.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{queries} + {row}*1]",
                "tileloadd tmm5, [{a} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm5, [{b} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm5",
                "tileloadd tmm5, [{c} + {row}*1]",
                "tdpbf16ps tmm2, tmm4, tmm5",
                "tileloadd tmm5, [{d} + {row}*1]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "add {queries}, 1024",
                "add {a}, 1024",
                "add {b}, 1024",
                "add {c}, 1024",
                "add {d}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{into} + {width}*1], tmm0",
                "tilestored [{into} + {width}*1 + 64], tmm1",
                "tilestored [{into} + {width}*1 + 128], tmm2",
                "tilestored [{into} + {width}*1 + 192], tmm3",
                queries = inout(reg) queries.as_ptr() => _,
                row = in(reg) 64_usize,
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                c = inout(reg) c => _,
                d = inout(reg) d => _,
                steps = inout(reg) queries.len() => _,
                into = in(reg) into.as_mut_ptr(),
                width = in(reg) size_of::<[f32; TILES * TILE]>(),
                options(nostack),
            );
        }
    }

    /// Adds the weighted values of up to four blocks to sixteen rows of `width` sums, a multiple of 64.
    ///
    /// # Safety
    /// The units must be configured for [attention](Shapes::ATTENTION), and there must be pairs of sixteen tokens'
    /// `width` values for each block of weights.
    #[inline(always)]
    pub(super) unsafe fn add_values(
        &self,
        weights: &[Weighed],
        values: &[*const u8; TILES],
        width: usize,
        sums: &mut [f32],
    ) {
        assert!((1..=TILES).contains(&weights.len()) && sums.len() == TILE * width);
        for dimension in (0..width).step_by(TILES * TILE) {
            // SAFETY: reads what the caller vouches for; reads and writes, of each row of sums, the 64 from this
            // dimension on; for registers see above.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{sums} + {width}*1]",
                    "tileloadd tmm1, [{sums} + {width}*1 + 64]",
                    "tileloadd tmm2, [{sums} + {width}*1 + 128]",
                    "tileloadd tmm3, [{sums} + {width}*1 + 192]",
                    "2:",
                    "mov {block}, [{values}]",
                    "add {block}, {skip}",
                    "tileloadd tmm6, [{weights} + {row}*1]",
                    "tileloadd tmm7, [{block} + {width}*1]",
                    "tdpbf16ps tmm0, tmm6, tmm7",
                    "tileloadd tmm7, [{block} + {width}*1 + 64]",
                    "tdpbf16ps tmm1, tmm6, tmm7",
                    "tileloadd tmm7, [{block} + {width}*1 + 128]",
                    "tdpbf16ps tmm2, tmm6, tmm7",
                    "tileloadd tmm7, [{block} + {width}*1 + 192]",
                    "tdpbf16ps tmm3, tmm6, tmm7",
                    "add {values}, 8",
                    "add {weights}, 512",
                    "dec {blocks}",
                    "jnz 2b",
                    "tilestored [{sums} + {width}*1], tmm0",
                    "tilestored [{sums} + {width}*1 + 64], tmm1",
                    "tilestored [{sums} + {width}*1 + 128], tmm2",
                    "tilestored [{sums} + {width}*1 + 192], tmm3",
                    weights = inout(reg) weights.as_ptr() => _,
                    row = in(reg) size_of::<[bf16; TILE]>(),
                    values = inout(reg) values.as_ptr() => _,
                    block = out(reg) _,
                    // A pair of values is as wide as a sum.
                    skip = in(reg) dimension * size_of::<f32>(),
                    blocks = inout(reg) weights.len() => _,
                    sums = in(reg) sums.as_mut_ptr().add(dimension),
                    width = in(reg) width * size_of::<f32>(),
                    options(nostack),
                );
            }
        }
    }
}

/// Nobody has such units, and so nobody calls these.
#[cfg(not(target_arch = "x86_64"))]
impl Configured {
    pub(super) unsafe fn by_panel(&self, _: &Product) {}
    pub(super) unsafe fn by_half_panel(&self, _: &Product) {}
    pub(super) unsafe fn scores(&self, _: &[Rows], _: [*const u8; TILES], _: &mut [f32]) {}
    pub(super) unsafe fn add_values(
        &self,
        _: &[Weighed],
        _: &[*const u8; TILES],
        _: usize,
        _: &mut [f32],
    ) {
    }
}
