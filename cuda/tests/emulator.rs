//! That the emulator computes what a device would, and finds what would go wrong on one.
// Launches kernels of its own.
#![allow(unsafe_code)]

use bytemuck::{NoUninit, bytes_of};
use realm_cuda::catalogue::Source;
use realm_cuda::{Element, Kernel, Launch, LaunchError, Launcher, Unit};
use realm_cuda_emulator::{Buffer, Emulator};

const SOURCE: Source = Source {
    name: "emulator_test.cu",
    text: include_str!("emulator_test.cu"),
};

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

fn launch(
    emulator: &Emulator,
    name: &'static str,
    threads: u32,
    input: &Buffer<u32>,
    out: &Buffer<u32>,
) -> Result<(), String> {
    let unit = Unit {
        source: SOURCE,
        element: Element::F32,
        head_dim: None,
    };
    let params = Params {
        input: input.memory().address(),
        out: out.memory().address(),
    };
    let launch = Launch {
        kernel: Kernel { unit, name },
        grid: [2, 1, 1],
        threads,
        shared: 256,
        params: bytes_of(&params),
    };
    // SAFETY: the kernels of the file have these parameters, and access at most 256 words of each.
    let result = unsafe { emulator.launch(&launch) };
    result.map_err(|error| match error {
        LaunchError::Run { why, .. } => why,
        other => panic!("{other}"),
    })
}

/// What the first block of a kernel makes of the numbers from 0 on. In whatever order threads run.
fn outcome(name: &'static str, threads: u32) -> Vec<u32> {
    let emulator = Emulator::new();
    let input = Buffer::of(&(0..256).collect::<Vec<u32>>());
    let run = || {
        let out = Buffer::new(256);
        launch(&emulator, name, threads, &input, &out).expect(name);
        out.values().to_vec()
    };
    let first = run();
    for _ in 0..3 {
        assert_eq!(run(), first, "{name} depends on the order of threads");
    }
    first
}

/// What the emulator says of a kernel that is wrong.
fn complaint(name: &'static str) -> String {
    let (input, out) = (Buffer::of(&[7u32; 256]), Buffer::new(256));
    launch(&Emulator::new(), name, 64, &input, &out).expect_err(name)
}

#[test]
fn lanes_exchange_values() {
    let out = outcome("shuffles", 64);
    for i in 0..64u32 {
        let (lane, base) = (i % 32, i / 32 * 32);
        let expected = [
            i ^ 5,
            base + (lane + 3) % 32,
            if lane < 4 { i } else { i - 4 },
            if lane < 28 { i + 4 } else { i },
        ];
        assert_eq!(out[i as usize * 4..][..4], expected, "thread {i}");
    }
}

#[test]
fn parts_of_a_warp_meet_on_their_own() {
    let out = outcome("halves", 32);
    for (i, value) in out[..32].iter().enumerate() {
        let expected: usize = if i < 16 { (0..16).sum() } else { 0xaaaa_0000 };
        assert_eq!(*value as usize, expected, "lane {i}");
    }
}

#[test]
fn blocks_reduce_and_count() {
    for threads in [32, 64, 256] {
        let out = outcome("reductions", threads);
        assert_eq!(out[0], (0..threads).sum::<u32>());
        assert_eq!(out[1], threads - 1);
        assert_eq!(out[2], threads, "what the threads of a block counted");
    }
}

#[test]
fn shared_memory_is_shared_after_a_barrier() {
    let out = outcome("reverse", 64);
    let expected: Vec<u32> = (0..64).rev().collect();
    assert_eq!(out[..64], expected);
}

#[test]
fn copies_arrive_when_waited_for() {
    let out = outcome("copies", 32);
    // Before the wait, after it for the older group alone, and after all.
    assert_eq!(out[..4], [u32::MAX; 4]);
    assert_eq!(out[4..8], [0, 1, 2, 3]);
    assert_eq!(out[8..12], [u32::MAX; 4]);
    assert_eq!(out[12..16], [4, 5, 6, 7]);
    assert_eq!(out[16..20], [0; 4], "zeros instead of what is not valid");
}

#[test]
fn unwritten_shared_memory_is_poison_in_every_block() {
    let out = outcome("unwritten", 32);
    assert_eq!(out[..4], [u32::MAX; 4]);
}

#[test]
fn types_convert_both_ways() {
    let out = outcome("conversions", 32);
    let values = [1.0f32, 257.0 / 256.0, 65520.0, -1e-7, 3.0e38, 0.333];
    for (i, value) in values.into_iter().enumerate() {
        let (b, h) = (half::bf16::from_f32(value), half::f16::from_f32(value));
        assert_eq!(f32::from_bits(out[4 * i]), b.to_f32());
        assert_eq!(f32::from_bits(out[4 * i + 1]), h.to_f32());
        let packed =
            u32::from(b.to_bits()) | u32::from(half::bf16::from_f32(-value).to_bits()) << 16;
        assert_eq!(out[4 * i + 2], packed);
        let exponential = f32::from_bits(out[4 * i + 3]);
        let exact = f64::from(value).min(88.0).exp();
        assert!(
            (f64::from(exponential) / exact - 1.0).abs() < 3e-7,
            "exp({value}) = {exponential}"
        );
    }
}

#[test]
fn wrong_kernels_are_found() {
    for (name, words) in [
        (
            "divergent_barrier",
            ["waits at the barrier", "waits at the barrier"],
        ),
        ("early_exit", ["waits at the barrier", "has ended"]),
        (
            "missing_lane",
            ["waits in __shfl_xor_sync", "waits at the barrier"],
        ),
        ("foreign_mask", ["mask that does not name it", "thread"]),
        ("misaligned", ["misaligned address", "block (0, 0, 0)"]),
        (
            "beyond_shared",
            ["beyond a shared array of 256 bytes", "written 0 bytes"],
        ),
    ] {
        let why = complaint(name);
        for word in words {
            assert!(why.contains(word), "{name}: {why}");
        }
    }
    assert!(complaint("reverse_of_32").contains("64 threads"));
}

#[test]
fn a_missing_barrier_shows() {
    let emulator = Emulator::new();
    let input = Buffer::of(&(0..256).collect::<Vec<u32>>());
    let wrong = (0..4).any(|_| {
        let out = Buffer::new(256);
        launch(&emulator, "no_barrier", 64, &input, &out).expect("runs");
        out.values()[..64].contains(&u32::MAX)
    });
    assert!(
        wrong,
        "no order of threads shows that the barrier is missing"
    );
}
