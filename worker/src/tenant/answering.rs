//! A program's life: it answers one request.

use std::collections::BTreeMap;
use std::sync::Arc;

use realm_shared::detokenize::Detokenizer;
use realm_shared::run::{self, Finish, Journal, MOST_CALLS, MOST_KEPT, MOST_SEEN, Part, What};
use realm_shared::wire::Fault;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store};

use super::Failure;
use super::contract::program::exports::realm::program::answering::{
    self, Message, Request, Role, Tool, ToolCall, ToolChoice,
};
use super::contract::program::realm::program::sequences::Sampling;
use super::contract::program::{ProgramPre, realm};
use super::guest::{self, Guest, MAX_TOKENS, too_long};
use super::handles;
use super::lease::Leases;
use super::outbox::{PIECE, Voice};
use super::replay::Replay;
use super::sequences::plan;

/// Most sequences that one message can name: it must fit a slot.
const MAX_TOOK: usize = 1024;
/// Most bytes that are shown of a name that there is not.
const MAX_SHOWN: usize = 64;

/// What an instance that answers a request has beside its memory.
pub(super) struct Run {
    pub(super) guest: Guest,
    pub(super) voice: Voice,
    pub(super) leases: Arc<Leases>,
    /// Its sequences.
    pub(super) table: ResourceTable,
    pub(super) tensors: ResourceTable,
    /// Bytes that its tensors may still have.
    pub(super) tensor_room: u64,
    /// Bytes that those that are not computed yet may still keep of what they are to be computed from.
    pub(super) kept_room: u64,
    /// Sequences that it has made.
    pub(super) made: u32,
    pub(super) limits: Limits,
    /// What happened in an earlier life and has not happened again.
    pub(super) replay: Replay,
    /// Words that it may still see.
    see_room: usize,
    /// Tokens that it may still save.
    pub(super) keep_room: usize,
    /// Tokens, logits and hidden states that it asked for, over all sequences.
    pub(super) asked: u64,
    /// Of which sequences it took how many since it said something last.
    pub(super) took: BTreeMap<u32, u32>,
    /// What it gave out and what was not said yet.
    given: Given,
    /// Bytes that it may still give out.
    room: usize,
    /// Names of the tools that it may call.
    tools: Vec<String>,
    /// Calls that it began.
    calls: usize,
    /// Spells the tokens that it gives out, from the first of them on.
    speller: Option<Detokenizer>,
}

/// The end of an answer, of one kind.
enum Given {
    Text(String),
    Arguments(String),
}

/// How much there may be.
pub(super) struct Limits {
    /// Tokens of the vocabulary.
    pub(super) vocabulary: u32,
    /// Numbers of a hidden state.
    pub(super) hidden_size: u32,
    /// Tokens of a sequence.
    pub(super) context: u32,
    /// Tokens, logits and hidden states over all sequences.
    pub(super) budget: u64,
    /// Sequences at once.
    pub(super) sequences: u32,
    /// Tensors at once.
    pub(super) handles: usize,
    /// Bytes of tensors.
    pub(super) tensors: u64,
    /// Bytes of text.
    pub(super) output: usize,
}

impl AsMut<Guest> for Run {
    fn as_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

impl Run {
    pub(super) fn new(
        guest: Guest,
        voice: Voice,
        leases: Arc<Leases>,
        limits: Limits,
        tools: Vec<String>,
        journal: Journal,
    ) -> Run {
        let sequences = usize::try_from(limits.sequences).unwrap_or(usize::MAX);
        Run {
            guest,
            voice,
            leases,
            table: handles::table(sequences),
            tensors: handles::table(limits.handles),
            tensor_room: limits.tensors,
            kept_room: limits.tensors,
            made: 0,
            replay: Replay::new(journal),
            see_room: MOST_SEEN,
            keep_room: MOST_KEPT,
            asked: 0,
            took: BTreeMap::new(),
            given: Given::Text(String::new()),
            room: limits.output,
            tools,
            calls: 0,
            speller: None,
            limits,
        }
    }

    /// Says what was given out: before anything is said that comes after it, and before any wait.
    pub(super) fn say_given(&mut self) {
        let (part, mut rest): (fn(String) -> Part, _) = match &mut self.given {
            Given::Text(text) => (Part::Text, std::mem::take(text)),
            Given::Arguments(text) => (Part::Arguments, std::mem::take(text)),
        };
        while !rest.is_empty() {
            let behind = rest.split_off(rest.floor_char_boundary(PIECE));
            let piece = std::mem::replace(&mut rest, behind);
            self.say(What::Emit(part(piece)));
        }
    }

    /// What it saw in an earlier life where it looks now.
    pub(super) fn saw(&mut self) -> Option<Vec<u32>> {
        let words = self.replay.see()?;
        self.see_room = self.see_room.saturating_sub(1 + words.len());
        Some(words)
    }

    /// It sees something for the first time.
    pub(super) fn sees(&mut self, words: &[u32]) -> Result<(), Failure> {
        self.has_seen(words.len())?;
        self.say_look(What::Saw(words.into()));
        Ok(())
    }

    /// So many words count as seen.
    pub(super) fn has_seen(&mut self, words: usize) -> Result<(), Failure> {
        let Some(room) = self.see_room.checked_sub(1 + words) else {
            let message = format!("it sees more than {MOST_SEEN} words");
            return Err(Failure::new(Fault::Output, message));
        };
        self.see_room = room;
        Ok(())
    }

    /// Says that it looks where it did not in an earlier life, as far as that is known: what follows may be
    /// other than what followed then.
    pub(super) fn say_look(&mut self, what: What) {
        self.say_given();
        for kept in self.replay.part().chunks(MAX_TOOK) {
            self.say(What::Redraw(kept.into()));
        }
        self.say(what);
    }

    pub(super) fn say(&mut self, what: What) {
        let took = std::mem::take(&mut self.took);
        self.voice.say(took.into_iter().collect(), what);
    }

    /// A token of a sequence was taken.
    pub(super) fn has_taken(&mut self, sequence: u32) {
        *self.took.entry(sequence).or_default() += 1;
        if self.took.len() >= MAX_TOOK {
            self.say(What::Emit(Part::Text(String::new())));
        }
    }
}

impl Run {
    /// Counts so many bytes of the answer.
    fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        let Some(room) = self.room.checked_sub(bytes) else {
            let message = format!("it emits more than {} bytes", self.limits.output);
            return Err(Failure::new(Fault::Output, message));
        };
        self.room = room;
        Ok(())
    }

    /// Gives out text.
    fn emit(&mut self, text: &str) -> Result<(), Failure> {
        self.count(text.len())?;
        if let Given::Arguments(_) = self.given {
            self.say_given();
            self.given = Given::Text(String::new());
        }
        self.give(text);
        Ok(())
    }

    /// Begins a call.
    fn call(&mut self, name: String) -> Result<(), Failure> {
        if !self.tools.contains(&name) {
            let shown = &name[..name.floor_char_boundary(MAX_SHOWN)];
            let message = format!("`begin-call` of `{shown}`, which is no tool of the request");
            return Err(plan(message));
        }
        if self.calls == MOST_CALLS {
            let message = format!("it makes more than {MOST_CALLS} calls");
            return Err(Failure::new(Fault::Output, message));
        }
        self.count(name.len())?;
        self.calls += 1;
        self.say_given();
        self.say(What::Emit(Part::Call(name)));
        Ok(())
    }

    /// Gives out arguments.
    fn argue(&mut self, fragment: &str) -> Result<(), Failure> {
        if self.calls == 0 {
            return Err(plan("`emit-arguments` before `begin-call`"));
        }
        self.count(fragment.len())?;
        if let Given::Text(_) = self.given {
            self.say_given();
            self.given = Given::Arguments(String::new());
        }
        self.give(fragment);
        Ok(())
    }

    /// Gives out more of the kind that is given out.
    fn give(&mut self, more: &str) {
        let (Given::Text(text) | Given::Arguments(text)) = &mut self.given;
        text.push_str(more);
        if text.len() >= PIECE {
            self.say_given();
        }
    }

    /// Gives out what tokens began to spell and will not end.
    fn emit_unspelled(&mut self) -> Result<(), Failure> {
        let mut text = String::new();
        if let Some(speller) = &mut self.speller {
            speller.finish(&mut text);
        }
        self.emit(&text)
    }
}

impl realm::program::client::Host for Run {
    fn emit(&mut self, text: String) -> wasmtime::Result<()> {
        self.emit_unspelled()?;
        Ok(Run::emit(self, &text)?)
    }

    fn emit_tokens(&mut self, tokens: Vec<u32>) -> wasmtime::Result<()> {
        if tokens.len() > MAX_TOKENS {
            let message = format!("`emit-tokens` takes at most {MAX_TOKENS} tokens");
            return Err(too_long(message).into());
        }
        self.known("`emit-tokens`", &tokens)?;
        let vocabulary = self.guest.vocabulary.clone();
        let tokenizer = vocabulary.tokenizer()?;
        let speller = &mut self.speller;
        let speller = speller.get_or_insert_with(|| Detokenizer::at_start(tokenizer));
        let mut text = String::new();
        for token in tokens {
            speller.push(tokenizer, token, &mut text);
            if text.len() > self.limits.output {
                // More than there can be room for: no need to spell the rest.
                break;
            }
        }
        Ok(Run::emit(self, &text)?)
    }

    fn begin_call(&mut self, name: String) -> wasmtime::Result<()> {
        self.emit_unspelled()?;
        Ok(self.call(name)?)
    }

    fn emit_arguments(&mut self, fragment: String) -> wasmtime::Result<()> {
        Ok(self.argue(&fragment)?)
    }
}

/// An instance's life, from its making to what it is to say last, and of which sequences it took how many
/// tokens before that.
pub(super) async fn live(
    engine: &Engine,
    code: &ProgramPre<Run>,
    run: Run,
    request: run::Request,
) -> (Vec<(u32, u32)>, What) {
    let mut store = guest::store(engine, run);
    let ended = answer(code, &mut store, request).await;
    let run = store.data_mut();
    let ended = ended.and_then(|finish| run.emit_unspelled().map(|()| finish));
    run.say_given();
    let what = match ended {
        Ok(finish) => What::Finished(finish),
        Err(failure) => What::failed(failure.fault, failure.message),
    };
    (std::mem::take(&mut run.took).into_iter().collect(), what)
}

async fn answer(
    code: &ProgramPre<Run>,
    store: &mut Store<Run>,
    request: run::Request,
) -> Result<Finish, Failure> {
    guest::begin_call(store);
    let instance = code.instantiate_async(&mut *store).await;
    let instance = instance.map_err(|e| guest::failure(store, &e))?;
    let request = given(request, store.data().limits.vocabulary);
    guest::begin_call(store);
    let answering = instance.realm_program_answering();
    let said = answering.call_run(&mut *store, &request).await;
    match said.map_err(|e| guest::failure(store, &e))? {
        Ok(answering::Finish::Stop) => Ok(Finish::Stop),
        Ok(answering::Finish::Length) => Ok(Finish::Length),
        Err(message) => Err(guest::error(message)),
    }
}

/// The request, as a program is given it.
fn given(request: run::Request, vocabulary: u32) -> Request {
    let run::Request {
        messages,
        prompt,
        args,
        dials,
        max_tokens,
        context,
        tools,
        ..
    } = request;
    let call = |run::ToolCall {
                    id,
                    name,
                    arguments,
                }| ToolCall {
        id,
        name,
        arguments,
    };
    let messages = messages.into_iter().map(|message| Message {
        role: match message.role {
            run::Role::System => Role::System,
            run::Role::User => Role::User,
            run::Role::Assistant => Role::Assistant,
            run::Role::Tool => Role::Tool,
        },
        content: message.content,
        tool_calls: message.tool_calls.into_iter().map(call).collect(),
        tool_call_id: message.tool_call_id,
    });
    let offered = tools.offered.into_iter().map(|tool| Tool {
        name: tool.name,
        description: tool.description,
        parameters: tool.parameters,
        strict: tool.strict,
    });
    Request {
        messages: messages.collect(),
        prompt,
        args,
        sampling: Sampling {
            temperature: dials.temperature,
            top_p: dials.top_p,
            top_k: dials.top_k,
            min_p: dials.min_p,
        },
        max_tokens,
        vocabulary,
        context,
        tools: offered.collect(),
        tool_choice: match tools.choice {
            run::ToolChoice::None => ToolChoice::None,
            run::ToolChoice::Auto => ToolChoice::Auto,
            run::ToolChoice::Required => ToolChoice::Required,
            run::ToolChoice::Function(name) => ToolChoice::Function(name),
        },
        parallel_tool_calls: tools.parallel,
    }
}
