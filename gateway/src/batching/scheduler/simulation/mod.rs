//! The proof of the scheduler: a worker simulated down to the cells of its KV arena, computing a
//! deterministic "language model", against a straight-line computation of every sequence.
//!
//! What a cell holds depends on its token, its position and every cell before it, as read through
//! the block table at the moment of writing, like keys and values of a real model's deeper layers.
//! The token drawn depends on all of them and on the sampling state of the slot. So a wrong block,
//! position, input token, index or history, a stale cell, or a token lost or repeated on the way
//! through a preemption or a death changes what comes after it.

mod device;
mod model;
mod world;

use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use realm_shared::wire::{MAX_STOP_IDS, Sampling};

use super::STEPS_IN_FLIGHT;
use super::tests::{form, lease, steering};
use crate::batching::limits::Limits;
use crate::batching::sequence::{Allowance, Priority, Sequence, SequenceId, TenantId};
pub(super) use model::VOCAB;
pub(super) use model::mix;
use world::{Lie, Simulation};

#[derive(Debug, Clone)]
enum Op {
    /// Choices of one request: so many sequences that differ in their random numbers.
    Submit(Box<Sequence>, u64),
    Plan,
    Complete,
    /// Cancels, holds or resumes the sequence at this fraction of all so far.
    Cancel(prop::sample::Index),
    Hold(prop::sample::Index),
    Resume(prop::sample::Index),
    Lose,
    /// Starts a worker where there is none.
    Start(Limits),
    /// Starts one in the place of another.
    Replace(Limits),
    Lie(Lie),
    Gone,
}

/// Some of a text that many know, and something else behind it.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    let tail = prop::collection::vec(0..VOCAB, 1..12);
    (0u64..3, 0u64..20, tail).prop_map(|(text, known, tail)| {
        let known = (0..known).map(|position| (mix(text, position) % u64::from(VOCAB)) as u32);
        known.chain(tail).collect()
    })
}

fn any_tenant() -> impl Strategy<Value = TenantId> {
    (1u32..4).prop_map(|tenant| TenantId(NonZeroU32::new(tenant).expect("not 0")))
}

/// Weights and parts of the arena; mostly everybody's.
fn any_allowance() -> impl Strategy<Value = Allowance> {
    let weights = prop_oneof![3 => Just(1.0), 1 => Just(0.25), 1 => Just(8.0)];
    let shares = prop_oneof![3 => Just(1.0), 1 => 0.01..1.0];
    (weights, shares).prop_map(|(weight, kv_share)| Allowance { weight, kv_share })
}

fn any_priority() -> impl Strategy<Value = Priority> {
    prop_oneof![
        3 => Just(Priority::Normal),
        1 => Just(Priority::High),
        1 => Just(Priority::Low),
    ]
}

fn any_sequence() -> impl Strategy<Value = Sequence> {
    let whose = (any_tenant(), any_allowance(), any_priority(), any_prompt());
    let stops = prop::collection::vec(0..VOCAB, 0..4);
    let penalty = prop_oneof![2 => Just(1.0f32), 1 => Just(1.5)];
    let bias = prop::collection::vec((0..VOCAB, -1.0f32..1.0), 0..2);
    let counts = (0u32..20, 0u32..5, -1i32..4);
    (
        whose,
        stops,
        penalty,
        bias,
        counts,
        any::<(u64, bool, bool)>(),
    )
        .prop_map(
            |(whose, stops, repetition_penalty, bias, counts, (key, prompt_logprobs, steered))| {
                let (tenant, allowance, priority, prompt) = whose;
                let (max_tokens, min_tokens, top_logprobs) = counts;
                let mut stop_ids = [0; MAX_STOP_IDS];
                stop_ids[..stops.len()].copy_from_slice(&stops);
                Sequence {
                    id: SequenceId(0),
                    tenant,
                    allowance,
                    priority,
                    prompt: prompt.into(),
                    max_tokens,
                    sampling: Sampling {
                        key,
                        repetition_penalty,
                        min_tokens,
                        top_logprobs,
                        stop_count: stops.len() as u32,
                        stop_ids,
                        ..Sampling::default()
                    },
                    bias: bias.into(),
                    prompt_logprobs,
                    steering: steered.then([steering, form, lease][key as usize % 3]),
                }
            },
        )
}

/// Workers too small for a few sequences, and for some a little too small at all.
fn any_limits() -> impl Strategy<Value = Limits> {
    (1u32..6, 24u32..72, 1u32..14, 2u32..24, 16u32..64).prop_map(
        |(block_size, positions, max_sequences, max_step_tokens, max_context)| Limits {
            block_size,
            block_count: positions / block_size,
            max_sequences,
            max_step_tokens,
            max_context,
            vocab_size: VOCAB,
        },
    )
}

fn any_lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        Just(Lie::Number),
        Just(Lie::Rows),
        Just(Lie::TokenAboveVocabulary),
        Just(Lie::ExtraScores),
        Just(Lie::ExtraAlternative),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        60 => (any_sequence(), prop_oneof![3 => Just(1), 1 => 2u64..4])
            .prop_map(|(sequence, choices)| Op::Submit(Box::new(sequence), choices)),
        200 => Just(Op::Plan),
        160 => Just(Op::Complete),
        12 => any::<prop::sample::Index>().prop_map(Op::Cancel),
        12 => any::<prop::sample::Index>().prop_map(Op::Hold),
        12 => any::<prop::sample::Index>().prop_map(Op::Resume),
        6 => Just(Op::Lose),
        80 => any_limits().prop_map(Op::Start),
        1 => any_limits().prop_map(Op::Replace),
        1 => any_lie().prop_map(Op::Lie),
        1 => Just(Op::Gone),
    ]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(2000))]

    /// Whatever happens in whatever order, every sequence gets exactly the tokens, scores and
    /// end that it would have got alone, the bookkeeping is right after every operation, and
    /// what is left at the end is done within a bounded number of plans.
    #[test]
    fn every_sequence_gets_what_it_would_have_got_alone(
        depth in prop_oneof![1 => Just(1), 4 => Just(STEPS_IN_FLIGHT), 1 => Just(4)],
        max_table in prop_oneof![1 => 1usize..200, 1 => Just(usize::MAX)],
        max_opens in prop_oneof![1 => 1usize..4, 1 => Just(usize::MAX)],
        first in any_limits(),
        last in any_limits(),
        ops in prop::collection::vec(any_op(), 0..250),
    ) {
        let mut world = Simulation::new(depth, max_table, max_opens);
        world.ready(first);
        for op in ops {
            match op {
                Op::Submit(sequence, choices) => {
                    for choice in 0..choices {
                        let mut sequence = (*sequence).clone();
                        sequence.sampling.key ^= choice;
                        world.submit(sequence);
                    }
                }
                Op::Plan => {
                    world.plan();
                }
                Op::Complete => {
                    world.complete();
                }
                Op::Cancel(index) => {
                    if let Some(id) = world.pick(index) {
                        world.cancel(id);
                    }
                }
                Op::Hold(index) => {
                    if let Some(id) = world.pick(index) {
                        world.hold(id);
                    }
                }
                Op::Resume(index) => {
                    if let Some(id) = world.pick(index) {
                        world.resume(id);
                    }
                }
                Op::Lose => world.lose(),
                Op::Start(limits) if world.device.is_none() => world.ready(limits),
                Op::Start(_) => {}
                Op::Replace(limits) => world.ready(limits),
                Op::Lie(lie) => world.lie(lie),
                Op::Gone => world.gone(),
            }
        }
        if world.device.is_none() {
            world.ready(last);
        }
        world.drain();
    }
}
