//! Matrix units, and a fault of virtual machines that libtorch trips over.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__cpuid_count;
use std::sync::Once;

/// The environment's limit on the instructions that oneDNN uses.
const LIMIT: &str = "ONEDNN_MAX_CPU_ISA";
/// The leaf of `cpuid` that tells instruction sets.
#[cfg(target_arch = "x86_64")]
const FEATURES: u32 = 7;
#[cfg(target_arch = "x86_64")]
const AMX_BF16: u32 = 1 << 22;
#[cfg(target_arch = "x86_64")]
const AMX_TILE: u32 = 1 << 24;

/// Keeps oneDNN from matrix units that it cannot drive: some hypervisors announce AMX but hide
/// the description of its tiles, and every product in a 16-bit type then fails with "could not
/// create a primitive". oneDNN reads the limit once, at its first use.
pub(super) fn settle() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if amx_is_undescribed() && std::env::var_os(LIMIT).is_none() {
            // SAFETY: Rust code reads the environment under the standard library's lock, and no
            // other code has run yet: every use of libtorch comes after a `Threads` was made,
            // which calls this first, and other callers wait for it.
            unsafe { std::env::set_var(LIMIT, "AVX512_CORE_FP16") };
        }
    });
}

/// Whether the CPU has matrix units for `bf16` that the system has enabled.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_tiles() -> bool {
    // Tile configuration and tile data, in the state that the system saves.
    const TILE_STATE: u64 = 3 << 17;
    let announced = __cpuid_count(FEATURES, 0).edx & AMX_BF16 != 0;
    announced && !amx_is_undescribed() && enabled_state() & TILE_STATE == TILE_STATE
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_tiles() -> bool {
    false
}

/// Whether the CPU says that it has matrix units, usable or not.
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(super) fn announces_tiles() -> bool {
    __cpuid_count(FEATURES, 0).edx & (AMX_TILE | AMX_BF16) != 0
}

/// The parts of the processor's state that the system has enabled.
#[cfg(target_arch = "x86_64")]
fn enabled_state() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return 0;
    }
    // SAFETY: the instruction exists where the system says that it uses it.
    unsafe { read_enabled_state() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "xsave")]
fn read_enabled_state() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

#[cfg(target_arch = "x86_64")]
fn amx_is_undescribed() -> bool {
    const TILES: u32 = 0x1d;
    let announced = __cpuid_count(FEATURES, 0).edx & AMX_TILE != 0;
    // The number of the highest palette of tiles; 0 is none.
    announced && __cpuid_count(TILES, 0).eax == 0
}

#[cfg(not(target_arch = "x86_64"))]
fn amx_is_undescribed() -> bool {
    false
}
