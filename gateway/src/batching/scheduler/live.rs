//! A sequence that has not ended.

use std::ops::Range;
use std::sync::Arc;

use realm_shared::wire::Fault;

use super::SequenceView;
use super::shares::Party;
use crate::batching::prefix::{Digest, Prefix};
use crate::batching::sequence::{Allowance, FailReason, Sequence, Steering};
use crate::programs::Kind;

/// What is known of a sequence wherever it is; what outlives a worker.
#[derive(Debug)]
pub(super) struct Live {
    sequence: Sequence,
    generated: Vec<u32>,
    /// The names of all its full blocks, if these are of `block_size`.
    prefix: Prefix,
    /// 0 before there was a worker.
    block_size: usize,
    /// Whether it ever ran.
    started: bool,
    /// Positions of the prompt whose log-probabilities were reported.
    scored: usize,
    /// Rows of steps in flight that are its own.
    rows_in_flight: usize,
    /// Those of them that draw a token.
    draws_in_flight: usize,
    /// A worker died while this was in flight, and may have died of it. It is a suspect until it
    /// has this many tokens: then everything that was in flight has been computed again. Or until
    /// its plan is late with nothing in flight: then there is nothing more to compute.
    suspect_until: Option<usize>,
    /// It was on trial when a worker ended.
    accused: bool,
    /// It left the worker for somebody else's trial.
    made_way: bool,
}

/// How much of a sequence one worker computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Tokens it may hold.
    pub(super) tokens: usize,
    /// Positions to compute. The last token generated is never an input, so this is one less
    /// than `tokens`, except where nothing is to be generated.
    pub(super) positions: usize,
}

impl Live {
    pub(super) fn new(mut sequence: Sequence) -> Self {
        let prompt_len = u32::try_from(sequence.prompt.len());
        sequence.sampling.prompt_len = prompt_len.unwrap_or(u32::MAX);
        Self {
            sequence,
            generated: Vec::new(),
            prefix: Prefix::default(),
            block_size: 0,
            started: false,
            scored: 0,
            rows_in_flight: 0,
            draws_in_flight: 0,
            suspect_until: None,
            accused: false,
            made_way: false,
        }
    }

    /// Whether something steers it.
    pub(super) fn is_steered(&self) -> bool {
        self.sequence.steering.is_some()
    }

    /// Whether that is code of its own, or a grammar, which runs on threads of its own.
    pub(super) fn runs_code(&self) -> bool {
        let steering = &self.sequence.steering;
        matches!(steering, Some(Steering::Instance(_) | Steering::Form(_)))
    }

    /// Why it fails if what steers it does.
    pub(super) fn misled(&self, fault: Fault, message: Arc<str>) -> FailReason {
        match &self.sequence.steering {
            Some(Steering::Form(_)) => FailReason::Grammar { fault, message },
            _ => FailReason::Program {
                kind: Kind::Processor,
                fault,
                message,
            },
        }
    }

    /// Whose it is, and how urgent.
    pub(super) fn party(&self) -> Party {
        Party {
            priority: self.sequence.priority,
            tenant: self.sequence.tenant,
        }
    }

    /// What its tenant may have.
    pub(super) fn allowance(&self) -> Allowance {
        self.sequence.allowance
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.sequence.prompt.len()
    }

    /// Tokens whose values are known here.
    pub(super) fn known(&self) -> usize {
        self.prompt_len() + self.generated.len()
    }

    /// Tokens it has once every row in flight has drawn.
    pub(super) fn len(&self) -> usize {
        self.known() + self.draws_in_flight
    }

    pub(super) fn extent(&self, max_context: usize) -> Extent {
        let prompt = self.prompt_len();
        let tokens = prompt
            .saturating_add(self.sequence.max_tokens as usize)
            .min(max_context);
        Extent {
            tokens,
            positions: prompt.max(tokens.saturating_sub(1)),
        }
    }

    /// The token at a position. None if it is being drawn.
    pub(super) fn token(&self, position: usize) -> Option<u32> {
        match position.checked_sub(self.prompt_len()) {
            None => self.sequence.prompt.get(position).copied(),
            Some(index) => self.generated.get(index).copied(),
        }
    }

    /// Those of the positions whose next token belongs to the prompt and is still to be scored.
    pub(super) fn unscored(&self, positions: Range<usize>) -> Range<usize> {
        let end = positions.end.min(self.prompt_len() - 1);
        let start = positions.start.max(self.scored);
        match self.sequence.prompt_logprobs && start < end {
            true => start..end,
            false => 0..0,
        }
    }

    /// Positions from the front of which nothing is wanted but what later ones read of them: they
    /// need not be computed where a block holds them. Never all, as the last one tells the next
    /// token.
    fn skippable(&self) -> usize {
        let unscored = self.unscored(0..self.known());
        match unscored.is_empty() {
            true => self.known() - 1,
            false => unscored.start,
        }
    }

    /// Alternatives to report per token; None if log-probabilities of tokens drawn are not wanted.
    pub(super) fn top_logprobs(&self) -> Option<usize> {
        usize::try_from(self.sequence.sampling.top_logprobs).ok()
    }

    pub(super) fn view(&self) -> SequenceView<'_> {
        SequenceView {
            tenant: self.sequence.tenant,
            prompt: &self.sequence.prompt,
            generated: &self.generated,
            sampling: &self.sequence.sampling,
            bias: &self.sequence.bias,
            steering: self.sequence.steering.as_ref(),
        }
    }
}

// === Names of its blocks ===

impl Live {
    /// Names its full blocks, of this size from here on.
    pub(super) fn name_blocks(&mut self, block_size: usize) {
        if block_size != self.block_size {
            self.block_size = block_size;
            self.prefix = Prefix::default();
        }
        let mut prefix = std::mem::take(&mut self.prefix);
        let full = self.known().checked_div(block_size).unwrap_or(0);
        for block in prefix.digests().len()..full {
            let positions = block * block_size..(block + 1) * block_size;
            let tokens = positions.filter_map(|position| self.token(position));
            prefix.push(self.sequence.tenant, tokens);
        }
        self.prefix = prefix;
    }

    /// Takes over the names that the prompt's blocks have with another sequence, if they share
    /// it. They are many where it is long.
    pub(super) fn name_blocks_like(&mut self, other: &Live) {
        let (ours, theirs) = (&self.sequence, &other.sequence);
        let alike = ours.tenant == theirs.tenant && Arc::ptr_eq(&ours.prompt, &theirs.prompt);
        if alike && self.block_size != other.block_size {
            self.block_size = other.block_size;
            let full = self.prompt_len().checked_div(other.block_size).unwrap_or(0);
            self.prefix = other.prefix.first(full);
        }
    }

    /// The names of all its full blocks.
    pub(super) fn names(&self) -> &[Digest] {
        self.prefix.digests()
    }

    /// Those of them that need not be computed where the arena has them.
    pub(super) fn usable_names(&self) -> &[Digest] {
        let usable = self.skippable().checked_div(self.block_size).unwrap_or(0);
        &self.names()[..usable.min(self.names().len())]
    }
}

// === In flight ===

impl Live {
    pub(super) fn is_in_flight(&self) -> bool {
        self.rows_in_flight > 0
    }

    /// Rows in flight, and those of them that draw.
    pub(super) fn flights(&self) -> (usize, usize) {
        (self.rows_in_flight, self.draws_in_flight)
    }

    /// It leaves the worker until suspects have been tried.
    pub(super) fn make_way(&mut self) {
        self.made_way = true;
    }

    pub(super) fn has_made_way(&self) -> bool {
        self.made_way
    }

    /// It runs. Whether for the first time.
    pub(super) fn start(&mut self) -> bool {
        self.made_way = false;
        !std::mem::replace(&mut self.started, true)
    }

    pub(super) fn depart(&mut self, draws: bool) {
        self.rows_in_flight += 1;
        self.draws_in_flight += usize::from(draws);
    }

    pub(super) fn arrive(&mut self, draws: bool) {
        self.rows_in_flight -= 1;
        self.draws_in_flight -= usize::from(draws);
    }

    /// Nothing in flight will arrive. If there was something: how many tokens there would be had
    /// it arrived, and the next one been drawn where none was.
    pub(super) fn forget_flights(&mut self) -> Option<usize> {
        let draws = std::mem::take(&mut self.draws_in_flight);
        let rows = std::mem::take(&mut self.rows_in_flight);
        (rows > 0).then(|| self.known() + draws.max(1))
    }

    /// A worker may have died of this; or not, once it has so many tokens on another one.
    pub(super) fn suspect(&mut self, until: usize) {
        self.suspect_until = Some(until);
    }

    /// A worker died while this was on trial; perhaps of something else. Whether that happened before.
    pub(super) fn accuse(&mut self) -> bool {
        std::mem::replace(&mut self.accused, true)
    }

    /// All that there is of it was computed, and the worker lives: it is no suspect any more.
    pub(super) fn acquit_if_computed(&mut self) {
        if self.rows_in_flight == 0 {
            self.acquit();
        }
    }

    fn acquit(&mut self) {
        (self.suspect_until, self.accused) = (None, false);
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect_until.is_some()
    }

    /// Log-probabilities of the prompt were reported up to here.
    pub(super) fn set_scored(&mut self, end: usize) {
        self.scored = end;
    }

    /// Appends a token drawn. Whether it ends the sequence by being a stop id: while fewer than
    /// `min_tokens` are generated none does.
    pub(super) fn push(&mut self, token: u32) -> bool {
        self.generated.push(token);
        self.name_blocks(self.block_size);
        if self
            .suspect_until
            .is_some_and(|until| self.known() >= until)
        {
            self.acquit();
        }
        let sampling = &self.sequence.sampling;
        let armed = self.generated.len() > sampling.min_tokens as usize;
        let mut stops = sampling.stop_ids.iter().take(sampling.stop_count as usize);
        armed && stops.any(|&stop| stop == token)
    }
}
