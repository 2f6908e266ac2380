//! The messages of the rings and the order of the tensors in their slots.
//!
//! Submit ring (gateway → worker), executed strictly in order:
//!
//! | kind | args | input slot | output slot |
//! |---|---|---|---|
//! | [`OPEN`] | `[sequence slot, program or 0]` | tensors of [`open`] | none |
//! | [`STEP`] | `[step number, top]` | tensors of [`step`] | tensors of [`result`] |
//! | [`CLOSE`] | `[sequence slot, 0]` | none | none |
//! | [`FORGET`] | `[program, 0]` | none | none |
//! | [`RUN`] | `[run, program]` | tensors of [`run`] | none |
//! | [`JOIN`] | `[sequence slot, lease]` | tensors of [`open`] | none |
//! | [`END`] | `[run, 0]` | none | none |
//! | [`LISTEN`] | `[0, 0]` | none | [`LISTEN_BYTES`] |
//! | [`KEPT`] | `[run, 0]` | `u32[N]` | none |
//! | [`GUIDE`] | `[sequence slot, 0]` | tensors of [`open`] | none |
//!
//! Completion ring (worker → gateway):
//!
//! | kind | args | input slot | output slot |
//! |---|---|---|---|
//! | [`STEP_DONE`] | `[step number, nanoseconds on the device]` | as submitted | as submitted |
//! | [`HEARD`] | `[bytes, 0]` | none | of a [`LISTEN`] |
//!
//! Because the ring is executed in order, a KV block that the gateway frees and hands to another
//! sequence in a later step cannot be written by an earlier one, and a sequence slot needs no
//! closing: the next [`OPEN`] replaces its state. Only one that something steers is closed, since that
//! takes up room.
//!
//! A [`RUN`] starts a program that answers a request. What it says, see [`crate::run`], is written
//! into the slot of a [`LISTEN`] whenever there is something: that is the one message whose answer
//! has no turn. Among others it says that it has a sequence that is to be computed, under a name
//! that the worker gives it: its *lease*. The gateway opens that with [`JOIN`], like any sequence.

use bytemuck::{Pod, Zeroable};

/// Sets the sampling state of a sequence slot.
pub const OPEN: u16 = 1;
/// Runs one forward pass and samples.
pub const STEP: u16 = 2;
/// A step's results are in its output slot.
pub const STEP_DONE: u16 = 3;
/// The sequence in the slot is over, and so is its instance of a program.
pub const CLOSE: u16 = 4;
/// No later [`OPEN`] or [`RUN`] names the program.
pub const FORGET: u16 = 5;
/// Starts a program that answers a request.
pub const RUN: u16 = 6;
/// Sets the sampling state of a sequence slot, for a sequence of a program that runs.
pub const JOIN: u16 = 7;
/// Nobody waits for the answer of a program any more.
pub const END: u16 = 8;
/// Lends a slot, to be given back when some program says something.
pub const LISTEN: u16 = 9;
/// What programs said: JSON of `Vec<`[`Said`](crate::run::Said)`>`, so many bytes.
pub const HEARD: u16 = 10;
/// The tokens that a program [asked for](crate::run::What::Reopen) by their name; none if there are none.
pub const KEPT: u16 = 11;
/// Sets the sampling state of a sequence slot, for a sequence that a grammar steers.
pub const GUIDE: u16 = 12;
/// Bytes of the slot of a [`LISTEN`].
pub const LISTEN_BYTES: usize = 64 << 10;

/// Most end-of-sequence ids in [`Sampling::stop_ids`].
pub const MAX_STOP_IDS: usize = 8;
/// Most alternatives that `top_logprobs` may ask for.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How the tokens of one sequence are drawn. Fixed for the life of the sequence.
///
/// The random numbers of the token with index `i` (0 for the first generated one) are a function
/// of (`key`, `i`, token id) alone, so a sequence that is re-batched or resumed draws what it
/// would have drawn.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sampling {
    /// Key of the random numbers: request seed and choice index, mixed by the gateway.
    pub key: u64,
    /// 0 picks the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Nucleus: smallest set of tokens whose probability reaches this. 1 keeps all.
    pub top_p: f32,
    /// Tokens below this fraction of the best token's probability are dropped. 0 keeps all.
    pub min_p: f32,
    /// Tokens kept by rank. 0 keeps all.
    pub top_k: u32,
    /// Subtracted once from the logit of every token generated before.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of every token in prompt or output. 1 is off.
    pub repetition_penalty: f32,
    /// While fewer tokens than this are generated, `stop_ids` cannot be drawn.
    pub min_tokens: u32,
    /// Alternatives to report per token; -1 reports no log-probabilities at all.
    pub top_logprobs: i32,
    /// Length of the prompt inside `open::HISTORY` (what follows was generated).
    pub prompt_len: u32,
    /// Valid entries of `stop_ids`.
    pub stop_count: u32,
    /// Tokens that end the sequence.
    pub stop_ids: [u32; MAX_STOP_IDS],
    /// Keeps the size a multiple of the alignment.
    pub reserved: u32,
}

impl Default for Sampling {
    /// Draws from the whole distribution as the model gives it, ends at no token, and reports no
    /// log-probabilities. (All zeros would be a nucleus of nothing and a penalty.)
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            top_logprobs: -1,
            ..Sampling::zeroed()
        }
    }
}

impl Sampling {
    /// Whether drawing depends on the tokens before it. If so, `open::HISTORY` must hold them.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// What the code of a tenant may take, where an [`OPEN`] names a program, or what follows a text in its
/// grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Allotment {
    /// Bytes of linear memory of one instance, all its memories together; or of a place in a text.
    pub memory: u64,
    /// Microseconds of processor time for one call.
    pub call_micros: u64,
    /// Instances of this tenant that may live at once in one worker.
    pub instances: u32,
    /// Whose it is: processor time is shared among tenants.
    pub tenant: u32,
    /// Which choice of its request the sequence is.
    pub choice: u32,
    /// Sequences that a program may have at once.
    pub sequences: u32,
    /// Bytes of tensors that a program may have at once.
    pub tensors: u64,
    /// Bytes of text that a program may give out.
    pub output: u64,
    /// Bytes that an instance may write to the log.
    pub log: u64,
    /// Bytes that a call may hand to the host, all lists and strings together.
    pub handed: u64,
    /// Tensors that an instance may hold at once; a sixteenth as many places in texts of grammars.
    pub handles: u32,
    /// Milliseconds that may pass without a call that ends, of whatever the machine does.
    pub patience_millis: u32,
}

impl Default for Allotment {
    fn default() -> Self {
        Allotment {
            memory: 64 << 20,
            call_micros: 50_000,
            instances: 64,
            tenant: 0,
            choice: 0,
            sequences: 8,
            tensors: 64 << 20,
            output: 1 << 20,
            log: 64 << 10,
            handed: 8 << 20,
            handles: 1024,
            patience_millis: 30_000,
        }
    }
}

/// How the code of a tenant can fail, or a grammar. Each ends its own sequence and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// It said itself that it cannot go on. Of a grammar: it is none.
    Error = 1,
    /// It trapped.
    Trap = 2,
    /// A call took more processor time than allotted.
    Time = 3,
    /// It asked for more memory than allotted, or for more entries of tables than there are. Of a grammar: it is
    /// too complex.
    Memory = 4,
    /// What it planned cannot be: a token outside of the vocabulary, nothing to draw from.
    Plan = 5,
    /// There is no instance left for it: of its tenant's, or in the worker.
    Instances = 6,
    /// It cannot be run by this worker.
    Unusable = 7,
    /// A call took too long in wall time.
    Late = 8,
    /// More goes out or comes in than may: text, what it saves, or what it sees.
    Output = 9,
    /// It has more tensors than it may.
    Tensors = 10,
    /// It was not done in the wall time that it may take in all. Only a gateway finds that.
    Wall = 11,
    /// Its stack is full.
    Stack = 12,
    /// It holds more sequences at once than it may, or more places in texts.
    Handles = 13,
    /// It hands more to a call of its host than that takes.
    HostCall = 14,
    /// It reads more tokens than its tenant may use now. Only a gateway finds that.
    Tokens = 15,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 15] = [
        Fault::Error,
        Fault::Trap,
        Fault::Time,
        Fault::Memory,
        Fault::Plan,
        Fault::Instances,
        Fault::Unusable,
        Fault::Late,
        Fault::Output,
        Fault::Tensors,
        Fault::Wall,
        Fault::Stack,
        Fault::Handles,
        Fault::HostCall,
        Fault::Tokens,
    ];

    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| *fault as u8 == number)
    }
}

/// Tensors of a [`RUN`] message, in order.
pub mod run {
    /// `u8[size_of::<Allotment>()]`.
    pub const ALLOTMENT: usize = 0;
    /// `u8[B]`: JSON of a [`Request`](crate::run::Request).
    pub const REQUEST: usize = 1;
    /// `u8[B]`: JSON of [`Journal::drawn`](crate::run::Journal::drawn).
    pub const DRAWN: usize = 2;
    /// `u32[W]`: [`Journal::seen`](crate::run::Journal::seen).
    pub const SEEN: usize = 3;
    /// Number of tensors.
    pub const COUNT: usize = 4;
}

/// Tensors of an [`OPEN`], [`JOIN`] or [`GUIDE`] message, in order.
pub mod open {
    /// `u8[size_of::<Sampling>()]`.
    pub const SAMPLING: usize = 0;
    /// `i32[B]`: tokens whose logits are biased.
    pub const BIAS_IDS: usize = 1;
    /// `f32[B]`: what is added to them.
    pub const BIAS_VALUES: usize = 2;
    /// `i32[H]`: prompt and tokens generated so far, if penalties are in use or something steers the
    /// sequence; else empty.
    pub const HISTORY: usize = 3;
    /// `u8[size_of::<Allotment>()]` if there is a program or a grammar, else empty.
    pub const ALLOTMENT: usize = 4;
    /// `u8[A]`: arguments of the program, as JSON, or JSON of a [`Grammar`](crate::grammar::Grammar);
    /// empty without either.
    pub const ARGS: usize = 5;
    /// Number of tensors.
    pub const COUNT: usize = 6;
}

/// Tensors of a [`STEP`] message, in order. `R` rows (sequences), `T` tokens over all rows.
pub mod step {
    /// `i32[R]`: sequence slot of each row. No slot appears twice.
    pub const SLOTS: usize = 0;
    /// `i32[R + 1]`: where each row's tokens begin in `TOKENS`; the last entry is `T`.
    pub const STARTS: usize = 1;
    /// `i32[R]`: tokens of the sequence already in the KV arena; position of the row's first token.
    pub const CONTEXT: usize = 2;
    /// `i32[R]`: [`SAMPLE`], [`INPUT_SAMPLED`], [`STEERED`] and [`PARKED`], or-ed.
    pub const FLAGS: usize = 3;
    /// `i32[R]`: index of the token to be drawn (tokens generated before it).
    pub const INDEX: usize = 4;
    /// `i32[T]`: input tokens. Ignored for a row with [`INPUT_SAMPLED`].
    pub const TOKENS: usize = 5;
    /// `i32[R, B]`: KV blocks of each row in order, padded with 0 on the right.
    pub const BLOCKS: usize = 6;
    /// `i32[P]`: `P = T` where some row wants log-probabilities of its own prompt, else 0. Entry
    /// `t` is the token that follows input token `t`, to be scored by the logits at `t`; -1 asks
    /// for nothing at that position.
    pub const TARGETS: usize = 7;
    /// Number of tensors.
    pub const COUNT: usize = 8;

    /// Draw a token from the logits of the row's last position.
    pub const SAMPLE: i32 = 1;
    /// The row has one token: the one drawn last for this sequence slot, still on the device.
    pub const INPUT_SAMPLED: i32 = 2;
    /// A program steers the sequence, or a grammar.
    pub const STEERED: i32 = 4;
    /// The row has no tokens: its last answer was [`LATE`](super::result::LATE), and it is to draw
    /// from the logits that were kept. (With [`SAMPLE`] and [`STEERED`].)
    pub const PARKED: i32 = 8;
}

/// Tensors of a result, in order. `K` is the step's `top` argument: the most alternatives that a
/// row of the step asks for (0 for none).
pub mod result {
    /// `i32[R]`: token drawn, -1 for a row that was to draw none, [`NO_NUMBER`], or for a row that
    /// is steered [`LATE`], [`STOPPED`] or [`FAULT`].
    pub const TOKENS: usize = 0;
    /// `f32[R]`: its log-probability (of the unmodified distribution), if the row asked; else 0,
    /// as where there is no token.
    pub const LOGPROBS: usize = 1;
    /// `i32[R, K]`: most likely tokens, best first; -1 pads.
    pub const TOP_IDS: usize = 2;
    /// `f32[R, K]`: their log-probabilities.
    pub const TOP_LOGPROBS: usize = 3;
    /// `f32[P]`: log-probability of each entry of `step::TARGETS`; 0 where it is -1, and NaN where
    /// not one logit is a number.
    pub const PROMPT_LOGPROBS: usize = 4;
    /// `i32[P, K]`: most likely tokens at each of those positions, best first; -1 pads.
    pub const PROMPT_TOP_IDS: usize = 5;
    /// `f32[P, K]`: their log-probabilities.
    pub const PROMPT_TOP_LOGPROBS: usize = 6;
    /// `u8[R, N]`: what went wrong in a row with [`FAULT`]: one byte that is a
    /// [`Fault`](super::Fault), then UTF-8 text that ends at a zero or with the row. `N` is
    /// [`NOTE_BYTES`] in a step with a steered row, else 0.
    pub const NOTES: usize = 7;
    /// Number of tensors.
    pub const COUNT: usize = 8;

    /// Bytes of a row of `NOTES`.
    pub const NOTE_BYTES: usize = 256;

    /// In `TOKENS`, for a steered row: its program has not said yet how to draw. The worker keeps
    /// the logits. If the step after this one has a row of the sequence, that row draws from them
    /// (what it computes besides is void); otherwise one with
    /// [`PARKED`](super::step::PARKED) must ask again.
    pub const LATE: i32 = -3;
    /// In `TOKENS`, for a steered row: its program ended the sequence. Later rows in the same slot
    /// have no meaning.
    pub const STOPPED: i32 = -4;
    /// In `TOKENS`, for a steered row: its program failed, see `NOTES`. Later rows in the same slot
    /// have no meaning.
    pub const FAULT: i32 = -5;

    /// In `TOKENS`, for a row that was to draw: not one logit is a number. A later row with
    /// [`INPUT_SAMPLED`](super::step::INPUT_SAMPLED) in the same slot computes something without
    /// meaning, so that a step already in flight does no harm.
    pub const NO_NUMBER: i32 = -2;
}
