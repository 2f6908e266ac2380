//! Matrix units in software, so that what is written for them is tested on CPUs without them.
//!
//! Such a CPU refuses each instruction on tiles; the system makes a signal of that, whose handler here does what the
//! instruction would have done and goes on behind it. Encodings and operations are those of Intel's Software
//! Developer's Manual, volume 2, of the few instructions that are used; but numbers below the least normal one, which
//! units take for zero, stay what they are.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{Once, OnceLock};

use half::bf16;

use super::{DEPTH, Shapes, TILE};

/// Bytes of a row of a tile.
const ROW: usize = 64;

/// With which the encodings of all these instructions begin.
const PREFIX: u8 = 0xc4;

/// The tiles of a thread.
#[derive(Clone, Copy)]
struct Units {
    widths: [usize; 8],
    rows: [usize; 8],
    tiles: [[[u8; ROW]; TILE]; 8],
}

const RELEASED: Units = Units {
    widths: [0; 8],
    rows: [0; 8],
    tiles: [[[0; ROW]; TILE]; 8],
};

thread_local! {
    // Without a destructor and a lazy start, so that a signal handler may use it.
    static UNITS: Cell<Units> = const { Cell::new(RELEASED) };
}

/// Who handled refused instructions before: for WebAssembly they are how its code traps.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Has the instructions of this process emulated that the CPU refuses.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // WebAssembly's handler is set with the first engine. Ours must be the last: one that is called by that runs on
        // the stack for signals, which is too small for it.
        drop(wasmtime::Engine::default());
        // SAFETY: a zeroed action is a valid one, which is filled in or replaced.
        let (mut before, mut action): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: it only tells what there is.
        let told = unsafe { libc::sigaction(libc::SIGILL, std::ptr::null(), &mut before) };
        BEFORE.get_or_init(|| before);
        action.sa_sigaction = refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // SAFETY: the handler is of the kind that its flag says.
        let set = unsafe { libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) };
        assert_eq!((told, set), (0, 0), "no handler for refused instructions");
    });
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

extern "C" fn refused(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with such a handler the system passes the registers of the thread as they were.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    let mut code = [0; 15];
    // SAFETY: the thread is at an instruction. One that begins so is the emulated code's, which is in the middle of more;
    // of any other there may be no further bytes.
    unsafe {
        if at.read() == PREFIX {
            at.copy_to_nonoverlapping(code.as_mut_ptr(), code.len());
        }
    }
    match Instruction::decode(&code, registers) {
        Some((instruction, length)) => {
            let mut units = UNITS.get();
            // SAFETY: that its operands are in memory it may touch is what the code promises that has it.
            unsafe { instruction.run(&mut units) };
            UNITS.set(units);
            registers[libc::REG_RIP as usize] += length as i64;
        }
        // Another instruction, for another handler. Without one it is met again without this one.
        None => match BEFORE.get() {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: with this flag it is the address of such a handler, which was there for this signal.
                let handler: Handler = unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal, info, context);
            }
            _ => {
                // SAFETY: any signal may be left to the system.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
        },
    }
}

#[derive(Debug, PartialEq)]
enum Instruction {
    Configure(*const Shapes),
    Release,
    Zero(usize),
    Load {
        tile: usize,
        from: *const u8,
        stride: usize,
    },
    Store {
        tile: usize,
        into: *mut u8,
        stride: usize,
    },
    /// `sums += rows * pairs`
    Multiply {
        sums: usize,
        rows: usize,
        pairs: usize,
    },
}

impl Instruction {
    /// The instruction at the start of `code`, and its length.
    fn decode(code: &[u8; 15], registers: &[i64]) -> Option<(Instruction, usize)> {
        // Behind the first byte of the prefix: inverted high bits of registers and the opcode map; an inverted third register, the
        // vector length and the prefix that is implied.
        let [PREFIX, map, prefix, opcode, operands, ..] = *code else {
            return None;
        };
        let (map, high) = (map & 0x1f, [map & 0x20 == 0, map & 0x40 == 0]);
        if map != 2 || prefix & 0x84 != 0 {
            return None;
        }
        let third = usize::from(!(prefix >> 3) & 7);
        let (kind, first, second) = (
            operands >> 6,
            usize::from(operands >> 3 & 7),
            usize::from(operands & 7),
        );
        let memory = || Memory::decode(code, high, registers);
        Some(match (opcode, prefix & 3, kind) {
            (0x49, 0, 3) => (Instruction::Release, 5),
            (0x49, 3, 3) => (Instruction::Zero(first), 5),
            (0x5c, 2, 3) => {
                let (sums, rows, pairs) = (first, second, third);
                (Instruction::Multiply { sums, rows, pairs }, 5)
            }
            (0x49, 0, _) if first == 0 => {
                let memory = memory();
                (Instruction::Configure(memory.at as _), memory.end)
            }
            // The second is a hint about caches besides.
            (0x4b, 3 | 1, _) => {
                let Memory { at, stride, end } = memory();
                let (tile, from) = (first, at as _);
                (Instruction::Load { tile, from, stride }, end)
            }
            (0x4b, 2, _) => {
                let Memory { at, stride, end } = memory();
                let (tile, into) = (first, at as _);
                (Instruction::Store { tile, into, stride }, end)
            }
            _ => return None,
        })
    }

    /// # Safety
    /// The instruction's memory must be there.
    unsafe fn run(self, units: &mut Units) {
        match self {
            Instruction::Configure(shapes) => {
                // SAFETY: the caller's promise.
                let shapes = unsafe { &*shapes };
                assert_eq!((shapes.palette, shapes.start), (1, 0), "palette and start");
                *units = RELEASED;
                for tile in 0..8 {
                    let (width, rows) = (shapes.widths[tile].into(), shapes.rows[tile].into());
                    assert!(width <= ROW && rows <= TILE && width % 4 == 0);
                    assert!((width == 0) == (rows == 0), "tile {tile} is half there");
                    (units.widths[tile], units.rows[tile]) = (width, rows);
                }
            }
            Instruction::Release => *units = RELEASED,
            Instruction::Zero(tile) => {
                units.check(tile);
                units.tiles[tile] = [[0; ROW]; TILE];
            }
            Instruction::Load { tile, from, stride } => {
                units.check(tile);
                // What lies beyond the shape of a tile becomes zero.
                units.tiles[tile] = [[0; ROW]; TILE];
                let (width, rows) = (units.widths[tile], units.rows[tile]);
                for (i, row) in units.tiles[tile][..rows].iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        from.wrapping_add(i * stride)
                            .copy_to_nonoverlapping(row.as_mut_ptr(), width);
                    }
                }
            }
            Instruction::Store { tile, into, stride } => {
                units.check(tile);
                let (width, rows) = (units.widths[tile], units.rows[tile]);
                for (i, row) in units.tiles[tile][..rows].iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        into.wrapping_add(i * stride)
                            .copy_from_nonoverlapping(row.as_ptr(), width);
                    }
                }
            }
            Instruction::Multiply { sums, rows, pairs } => units.multiply(sums, rows, pairs),
        }
    }
}

/// Where an operand in memory is, what its index register holds, and where the instruction ends.
struct Memory {
    at: usize,
    stride: usize,
    end: usize,
}

impl Memory {
    fn decode(code: &[u8; 15], [high_base, high_index]: [bool; 2], registers: &[i64]) -> Memory {
        /// Registers by their numbers in instructions.
        const NUMBERED: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        let register = |low: u8, high: bool| {
            let number = usize::from(low & 7) + if high { 8 } else { 0 };
            (number, registers[NUMBERED[number] as usize] as usize)
        };
        let (mode, low) = (code[4] >> 6, code[4] & 7);
        // Four in place of a register stands for another byte, with a base and a scaled index.
        let (base, index, scale, mut end) = match low {
            4 => {
                let more = code[5];
                let (number, index) = register(more >> 3, high_index);
                // The stack pointer is no index: its number means that there is none.
                let index = if number == 4 { 0 } else { index };
                (register(more, high_base).1, index, more >> 6, 6)
            }
            _ => (register(low, high_base).1, 0, 0, 5),
        };
        assert!(
            mode != 0 || !matches!(low, 5),
            "relative to the instruction"
        );
        let displacement = match mode {
            1 => i64::from(code[end] as i8),
            2 => i64::from(i32::from_le_bytes([
                code[end],
                code[end + 1],
                code[end + 2],
                code[end + 3],
            ])),
            _ => 0,
        };
        end += [0, 1, 4][usize::from(mode)];
        Memory {
            // Of a tile's rows the first is where base and displacement say; the index is from row to row.
            at: base.wrapping_add_signed(displacement as isize),
            stride: index << scale,
            end,
        }
    }
}

impl Units {
    /// A real unit would refuse, too.
    fn check(&self, tile: usize) {
        assert!(self.rows[tile] > 0, "tile {tile} is not configured");
    }

    fn multiply(&mut self, sums: usize, rows: usize, pairs: usize) {
        [sums, rows, pairs]
            .iter()
            .for_each(|tile| self.check(*tile));
        assert!(sums != rows && rows != pairs && sums != pairs);
        let depth = self.widths[rows] / 4;
        assert!(
            self.rows[sums] == self.rows[rows]
                && self.widths[sums] == self.widths[pairs]
                && self.rows[pairs] == depth,
            "tiles {sums}, {rows} and {pairs} do not fit each other"
        );
        let outputs = self.widths[sums] / 4;
        let values = |row: &[u8; ROW]| -> [f32; DEPTH] {
            std::array::from_fn(|i| bf16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32())
        };
        let pairs = self.tiles[pairs].map(|row| values(&row));
        for m in 0..self.rows[rows] {
            let row = values(&self.tiles[rows][m]);
            let mut added = [[0.0f32; TILE]; 2];
            for (k, pairs) in pairs[..depth].iter().enumerate() {
                for (half, added) in added.iter_mut().enumerate() {
                    for (n, added) in added[..outputs].iter_mut().enumerate() {
                        *added = row[2 * k + half].mul_add(pairs[2 * n + half], *added);
                    }
                }
            }
            let [firsts, seconds] = added;
            let added = firsts.iter().zip(seconds).take(outputs);
            for (sum, (first, second)) in
                self.tiles[sums][m].as_chunks_mut().0.iter_mut().zip(added)
            {
                *sum = (f32::from_le_bytes(*sum) + (first + second)).to_le_bytes();
            }
        }
    }
}

#[test]
fn other_instructions_are_not_taken_for_these() {
    let registers: Vec<i64> = (0..23).map(|i| 0x1000 * i).collect();
    let decode = |start: &[u8]| {
        let mut code = [0x90; 15];
        code[..start.len()].copy_from_slice(start);
        Instruction::decode(&code, &registers)
    };
    // ud2, a two-byte prefix, another map, another width, another opcode.
    for code in [
        &[0x0f, 0x0b][..],
        &[0xc5, 0xf8, 0x77],
        &[0xc4, 0xe1, 0x7b, 0x49, 0xc0],
        &[0xc4, 0xe2, 0xfb, 0x49, 0xc0],
        &[0xc4, 0xe2, 0x7b, 0x4a, 0xc0],
    ] {
        assert_eq!(decode(code), None);
    }
    let multiply = Instruction::Multiply {
        sums: 1,
        rows: 4,
        pairs: 6,
    };
    assert_eq!(decode(&[0xc4, 0xe2, 0x4a, 0x5c, 0xcc]), Some((multiply, 5)));
}
