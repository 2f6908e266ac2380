//! Drawing tokens on a device, where their logits are.

use std::collections::VecDeque;

use bytemuck::{cast_slice, pod_read_unaligned};
use realm_cuda::sample::{Bias, CountTokens, Row, STOP_IDS, Sample, Sampled, min_p_floor, scale};
use realm_cuda::{Device, DeviceError, Element, Memory};
use realm_shared::wire::{MAX_STOP_IDS, Sampling};

use super::weights::part;
use super::work::Room;
use crate::decoder::Draw;

/// Most biased tokens of a slot; one with more of them draws on the host.
const MOST_BIAS: usize = 1024;

const _: () = assert!(
    STOP_IDS == MAX_STOP_IDS,
    "one list is copied into the other"
);

/// How the tokens of each slot are drawn, and what comes of it.
pub(super) struct Draws<D: Device> {
    room: Room,
    vocab: usize,
    /// Type of the logits.
    element: Element,
    /// The rows of logits that are drawn from at once.
    rows: Memory,
    adjusted: Memory,
    out: Memory,
    /// The token that each slot drew last, `[slots]` of `i32`.
    pub(super) drawn: Memory,
    /// How often each token occurred in each slot, `[slots, vocab]`.
    counts: Memory,
    /// `[slots, MOST_BIAS]`
    bias: Memory,
    /// Room for tokens that are counted.
    history: Memory,
    rules: Vec<Rule>,
    /// Where the results of steps come in, and how many of each, the oldest first.
    coming: VecDeque<(D::Landing, usize)>,
    spare: Vec<D::Landing>,
}

/// How a slot draws.
#[derive(Debug, Clone, Copy, Default)]
struct Rule {
    row: Row,
    min_tokens: u32,
}

impl<D: Device> Draws<D> {
    /// Allocates it, for `at_once` rows of logits.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    pub(super) fn new(
        device: &D,
        element: Element,
        vocab: usize,
        room: Room,
        at_once: usize,
    ) -> Result<Draws<D>, DeviceError> {
        let drawn = device.allocate(room.rows * size_of::<i32>())?;
        device.write(drawn, &vec![0; drawn.bytes()])?;
        Ok(Draws {
            room,
            vocab,
            element,
            rows: device.allocate(at_once * size_of::<Row>())?,
            adjusted: device.allocate(at_once * vocab * size_of::<f32>())?,
            out: device.allocate(at_once * size_of::<Sampled>())?,
            drawn,
            counts: device.allocate(room.rows * vocab * size_of::<u32>())?,
            bias: device.allocate(room.rows * MOST_BIAS * size_of::<Bias>())?,
            history: device.allocate(room.tokens * size_of::<i32>())?,
            rules: vec![Rule::default(); room.rows],
            coming: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> usize {
        self.rules.len()
    }

    /// Sets how a slot draws; false if that cannot be done here.
    pub(super) fn open(
        &mut self,
        device: &D,
        slot: usize,
        sampling: &Sampling,
        bias: &[(i32, f32)],
        history: &[i32],
    ) -> Result<bool, DeviceError> {
        if bias.len() > MOST_BIAS || slot >= self.rules.len() {
            return Ok(false);
        }
        let mut row = Row {
            key: sampling.key,
            bias_count: bias.len() as u32,
            scale: scale(sampling.temperature),
            top_p: sampling.top_p,
            min_p_floor: min_p_floor(sampling.min_p),
            top_k: sampling.top_k,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            repetition: sampling.repetition_penalty,
            stop_count: sampling.stop_count,
            stop_ids: sampling.stop_ids,
            ..Row::default()
        };
        if !bias.is_empty() {
            let entry = |(token, value): &(i32, f32)| Bias {
                token: *token as u32,
                value: *value,
            };
            let entries: Vec<Bias> = bias.iter().map(entry).collect();
            let bytes: &[u8] = cast_slice(&entries);
            let at = slot * MOST_BIAS * size_of::<Bias>();
            let to = part(self.bias, at, bytes.len())?;
            device.write(to, bytes)?;
            row.bias = to.address();
        }
        if sampling.has_penalties() {
            let counts = self.count(device, slot, history, sampling.prompt_len as usize)?;
            row.counts = counts.address();
        }
        self.rules[slot] = Rule {
            row,
            min_tokens: sampling.min_tokens,
        };
        Ok(true)
    }

    /// The counts of a slot's tokens, of which the first `prompt` are its prompt's.
    fn count(
        &self,
        device: &D,
        slot: usize,
        history: &[i32],
        prompt: usize,
    ) -> Result<Memory, DeviceError> {
        let bytes = self.vocab * size_of::<u32>();
        let counts = part(self.counts, slot * bytes, bytes)?;
        device.write(counts, &vec![0; bytes])?;
        let mut prompt = prompt;
        for tokens in history.chunks(self.room.tokens) {
            device.write(self.history, cast_slice(tokens))?;
            let count = CountTokens {
                element: self.element,
                length: tokens.len(),
                prompt: prompt.min(tokens.len()),
                vocab: self.vocab,
                counts,
                tokens: self.history,
            };
            count.launch(device)?;
            prompt = prompt.saturating_sub(tokens.len());
        }
        Ok(counts)
    }

    /// Begins a step's draws.
    pub(super) fn begin(&mut self, device: &D) -> Result<(), DeviceError> {
        let landing = match self.spare.pop() {
            Some(landing) => landing,
            None => device.landing(self.room.tokens * size_of::<Sampled>())?,
        };
        self.coming.push_back((landing, 0));
        Ok(())
    }

    /// Draws from rows of logits, those that follow the ones before in the same step.
    pub(super) fn draw(
        &mut self,
        device: &D,
        logits: Memory,
        draws: &[Option<Draw>],
    ) -> Result<(), DeviceError> {
        let Some((landing, count)) = self.coming.back_mut() else {
            return Ok(());
        };
        let rules = &self.rules;
        let rows: Vec<Row> = draws.iter().map(|draw| row(rules, draw)).collect();
        device.write(self.rows, cast_slice(&rows))?;
        let sample = Sample {
            element: self.element,
            count: rows.len(),
            vocab: self.vocab,
            slots: rules.len(),
            logits,
            adjusted: self.adjusted,
            rows: self.rows,
            out: self.out,
            drawn: self.drawn,
        };
        sample.launch(device)?;
        let out = part(self.out, 0, rows.len() * size_of::<Sampled>())?;
        device.send(out, landing, *count * size_of::<Sampled>())?;
        *count += rows.len();
        Ok(())
    }

    /// Whether the results of the oldest step that was not asked for yet are there.
    pub(super) fn have_come(&self, device: &D) -> Result<bool, DeviceError> {
        let oldest = self.coming.front();
        oldest.map_or(Ok(false), |(landing, _)| device.has_landed(landing))
    }

    /// What came of the oldest step that was not asked for yet: this waits.
    pub(super) fn results(&mut self, device: &D) -> Result<Vec<Sampled>, DeviceError> {
        let Some((mut landing, count)) = self.coming.pop_front() else {
            return Ok(Vec::new());
        };
        let bytes = &device.landed(&mut landing)?[..count * size_of::<Sampled>()];
        let results = bytes.chunks_exact(size_of::<Sampled>());
        let results = results.map(pod_read_unaligned).collect();
        self.spare.push(landing);
        Ok(results)
    }
}

/// A draw as the device reads it.
fn row(rules: &[Rule], draw: &Option<Draw>) -> Row {
    let Some(draw) = draw else {
        return Row::default();
    };
    let Rule { row, min_tokens } = rules[draw.slot];
    let or_none = |n: Option<u32>| n.map_or(-1, |n| n as i32);
    let index = draw.index.unwrap_or(0);
    Row {
        index,
        slot: draw.index.map_or(-1, |_| draw.slot as i32),
        target: or_none(draw.target),
        top: draw.top.map_or(-1, |n| n as i32),
        stop_count: if index < min_tokens {
            row.stop_count
        } else {
            0
        },
        ..row
    }
}
