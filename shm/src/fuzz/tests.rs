#![cfg(not(miri))] // needs real segments and sockets

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::tensor::{DType, TensorWriter, required};

type Target = (
    &'static str,
    fn(&[u8]),
    fn() -> Vec<(&'static str, Vec<u8>)>,
);

const TARGETS: [Target; 3] = [
    ("descriptors", descriptors, descriptor_seeds),
    ("tensors", tensors, tensor_seeds),
    ("handshake", handshake, handshake_seeds),
];

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

/// Steps of [`descriptors`].
fn steps(steps: &[&[u8]]) -> Vec<u8> {
    steps.concat()
}

const POLL: &[u8] = &[255];
const ALLOC_INPUT: &[u8] = &[3, 200];
const ALLOC_OUTPUT: &[u8] = &[4, 200];
const SUBMIT: &[u8] = &[5];
const FREE_OUTPUT: &[u8] = &[6];
const ARM: &[u8] = &[7];
/// An answer that names the first slots handed out.
const ANSWER: &[u8] = &[2, 0, 0, 0, 0, 0, 0, 0, 0];
/// An answer that names none.
const BARE: &[u8] = &[2, 255, 0, 0, 0, 255, 0, 0, 0];

fn store(word: usize, value: u64) -> Vec<u8> {
    let word = (word as u32).to_le_bytes();
    [&[0], &word[..], &value.to_le_bytes()].concat()
}

fn descriptor_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let words = message::encode(0, EPOCH, &Message::default());
    let raw: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let raw = [&[1], &raw[..]].concat();
    let slab = layout::SLAB / 8;
    let tensor = tensor_seeds().remove(1).1;
    let payload: Vec<u8> = tensor
        .chunks(8)
        .enumerate()
        .flat_map(|(i, chunk)| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            store(slab + i, u64::from_le_bytes(word))
        })
        .collect();
    let handed = steps(&[ALLOC_INPUT, ALLOC_OUTPUT, SUBMIT]);
    vec![
        ("idle", steps(&[POLL, ARM, POLL])),
        (
            "step",
            steps(&[&handed, &payload, ANSWER, POLL, FREE_OUTPUT, ARM]),
        ),
        (
            "two-answers",
            steps(&[&handed, ANSWER, BARE, POLL, POLL, POLL]),
        ),
        ("raw", steps(&[&raw, POLL])),
        (
            "stale",
            steps(&[&handed, FREE_OUTPUT, ALLOC_OUTPUT, ANSWER, POLL]),
        ),
        ("freed", steps(&[&handed, FREE_OUTPUT, ANSWER, POLL])),
        (
            "generation",
            steps(&[&handed, &[2, 255, 0, 0, 0, 0, 0, 1, 0], POLL]),
        ),
        (
            "length",
            steps(&[&handed, &[2, 255, 0, 0, 0, 0, 0, 0, 0x80], POLL]),
        ),
        (
            "head-too-far",
            steps(&[&store(HEAD, RING_ENTRIES + 1), POLL]),
        ),
        ("head-back", steps(&[BARE, POLL, &store(HEAD, 0), POLL])),
        ("unwritten", steps(&[BARE, &store(HEAD, 2), POLL, POLL])),
        ("tail", steps(&[&store(layout::TAIL, 9), SUBMIT, POLL])),
        (
            "asleep",
            steps(&[&store(layout::ASLEEP, u64::MAX), SUBMIT, SUBMIT, POLL]),
        ),
    ]
}

fn tensor_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let written = |write: fn(&mut TensorWriter<'_>), tensors: &[(DType, usize)]| {
        let mut bytes = AlignedBuf::new();
        bytes.resize(required(tensors));
        bytes.fill(0);
        let mut writer = TensorWriter::new(&mut bytes, tensors.len()).unwrap();
        write(&mut writer);
        bytes.to_vec()
    };
    let none = written(|_| {}, &[]);
    let one = written(
        |w| w.tensor(&[2, 3]).unwrap().fill(1.5f32),
        &[(DType::F32, 6)],
    );
    let scalar = written(|w| w.tensor(&[]).unwrap().fill(-7i64), &[(DType::I64, 1)]);
    let many = written(
        |w| {
            w.tensor(&[3]).unwrap().fill(9u8);
            w.tensor(&[1, 1, 2, 2]).unwrap().fill(f16::ONE);
            w.tensor(&[0, 5]).unwrap().fill(0u64);
            w.tensor(&[4]).unwrap().fill(-1i32);
        },
        &[
            (DType::U8, 3),
            (DType::F16, 4),
            (DType::U64, 0),
            (DType::I32, 4),
        ],
    );
    let changed = |word: usize, value: u32| {
        let mut bytes = one.clone();
        bytes[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    vec![
        ("none", none),
        ("one", one.clone()),
        ("scalar", scalar),
        ("many", many),
        ("count", changed(0, u32::MAX)),
        ("type", changed(1, 99)),
        ("rank", changed(2, 5)),
        ("overflow", changed(3, u32::MAX)),
        ("outside", changed(7, !63)),
        ("cut", one[..one.len() - 1].to_vec()),
    ]
}

fn handshake_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let offer = Hello::offer(EPOCH, ABI, [1 << 20, 2 << 20], 7);
    let answer = bytemuck::bytes_of(&offer.answer(ABI)).to_vec();
    let changed = |at: usize| {
        let mut bytes = answer.clone();
        bytes[at] ^= 1;
        bytes
    };
    vec![
        ("answer", answer.clone()),
        ("offer", bytemuck::bytes_of(&offer).to_vec()),
        ("magic", changed(0)),
        ("version", changed(8)),
        ("abi", changed(12)),
        ("layout", changed(16)),
        ("epoch", changed(24)),
        ("reserved", changed(63)),
        ("short", answer[..63].to_vec()),
        ("long", [&answer[..], b"!"].concat()),
    ]
}

/// The hello holds the hash of the layout, so a change of the layout changes some of these files.
#[test]
fn the_committed_corpus_is_what_the_seeds_are() {
    let bless = std::env::var_os("REALM_BLESS").is_some();
    for (target, _, seeds) in TARGETS {
        for (name, bytes) in seeds() {
            let path = corpus(target).join(name);
            if bless {
                fs::create_dir_all(corpus(target)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            assert!(
                fs::read(&path).is_ok_and(|found| found == bytes),
                "{} is out of date: run this test once with REALM_BLESS=1",
                path.display()
            );
        }
    }
}

#[test]
fn the_seeds_reach_what_they_are_for() {
    let seed = |seeds: Vec<(&str, Vec<u8>)>, name: &str| {
        let found = seeds.into_iter().find(|(n, _)| *n == name);
        found.map(|(_, bytes)| bytes).unwrap()
    };
    let mut bytes = AlignedBuf::new();
    for (name, count) in [("none", 0), ("one", 1), ("scalar", 1), ("many", 4)] {
        let seed = seed(tensor_seeds(), name);
        bytes.resize(seed.len());
        bytes.copy_from_slice(&seed);
        assert_eq!(TensorReader::new(&bytes).unwrap().count(), count);
    }
    for name in ["count", "type", "rank", "overflow", "outside", "cut"] {
        let seed = seed(tensor_seeds(), name);
        bytes.resize(seed.len());
        bytes.copy_from_slice(&seed);
        assert!(TensorReader::new(&bytes).is_err(), "{name}");
    }
}

#[test]
fn every_file_of_the_corpus_passes() {
    for (target, run, _) in TARGETS {
        for entry in fs::read_dir(corpus(target)).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

/// One change of a seed.
#[derive(Debug, Clone)]
enum Edit {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u32),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), prop_oneof![0u8..9, any::<u8>()]).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 0u32..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (
            at(),
            prop::collection::vec(prop_oneof![0u8..9, any::<u8>()], 1..12)
        )
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1usize..12).prop_map(|(at, len)| Edit::Remove(at, len)),
    ]
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let index = |at: &prop::sample::Index| at.index(bytes.len().max(1));
        match edit {
            Edit::Set(at, byte) => {
                let at = index(at);
                bytes.splice(at..(at + 1).min(bytes.len()), [*byte]);
            }
            Edit::Flip(at, bit) => {
                let at = index(at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Edit::Insert(at, more) => {
                let at = index(at).min(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Remove(at, len) => {
                let at = index(at).min(bytes.len());
                bytes.drain(at..(at + len).min(bytes.len()));
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn changed_seeds_pass(
        target in 0..TARGETS.len(),
        seed: prop::sample::Index,
        edits in prop::collection::vec(edit(), 1..8),
    ) {
        let (_, run, seeds) = TARGETS[target];
        let mut seeds = seeds();
        let (_, bytes) = seeds.swap_remove(seed.index(seeds.len()));
        run(&edited(bytes, &edits));
    }
}
