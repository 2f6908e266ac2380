//! A fault of virtual machines that libtorch trips over.

use std::sync::Once;

/// Keeps oneDNN from matrix units that it cannot drive: some hypervisors announce AMX but hide
/// the description of its tiles, and every product in a 16-bit type then fails with "could not
/// create a primitive". oneDNN reads the limit once, at its first use.
pub(super) fn settle() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        const LIMIT: &str = "ONEDNN_MAX_CPU_ISA";
        if amx_is_undescribed() && std::env::var_os(LIMIT).is_none() {
            // SAFETY: Rust code reads the environment under the standard library's lock, and no
            // other code has run yet: every use of libtorch comes after a `Threads` was made,
            // which calls this first, and other callers wait for it.
            unsafe { std::env::set_var(LIMIT, "AVX512_CORE_FP16") };
        }
    });
}

#[cfg(target_arch = "x86_64")]
fn amx_is_undescribed() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const FEATURES: u32 = 7;
    const TILES: u32 = 0x1d;
    const AMX_TILE: u32 = 1 << 24;
    let announced = __cpuid_count(FEATURES, 0).edx & AMX_TILE != 0;
    // The number of the highest palette of tiles; 0 is none.
    announced && __cpuid_count(TILES, 0).eax == 0
}

#[cfg(not(target_arch = "x86_64"))]
fn amx_is_undescribed() -> bool {
    false
}
