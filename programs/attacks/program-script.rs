//! Does what the request's arguments say, step by step, and writes down what came of it. So it can be told
//! to be good as well as bad.

use std::time::Duration;

use realm_program::program::{
    Exhausted, Finish, Request, Sampling, Sequence, begin_call, emit, emit_arguments, emit_tokens,
    wait_any,
};
use realm_program::tensor::Tensor;
use realm_program::{Allowed, Draw, Error, program, random, text};
use serde::Deserialize;

/// A step. Sequences and tensors are named by how many were made before.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    /// Makes a sequence, where nothing is said of the request's prompt.
    New(New),
    Fork(usize),
    Length(usize),
    Append(usize, Vec<u32>),
    Truncate(usize, u32),
    Ask(usize),
    AskWith(usize, How),
    Take(usize),
    /// Waits for the first of these, and writes which it is.
    WaitAny(Vec<usize>),
    /// Has these draw side by side: so many times, takes a token of the first that has one, writes it with whose
    /// it is, and asks that one again.
    Race(Vec<usize>, u32),
    Drop(usize),
    /// Saves a sequence under a name, for so many seconds.
    Save(usize, String, u64),
    /// Makes a sequence, or says that there is none.
    Reopen(String),
    Forget(String),
    AskLogits(usize),
    /// Makes a tensor.
    TakeLogits(usize),
    AskHidden(usize),
    /// Makes a tensor.
    TakeHidden(usize),
    /// Draws from a tensor: sequence, tensor.
    AskFrom(usize, usize),
    /// Makes a tensor.
    Tensor(Vec<u32>, Vec<f32>),
    /// Makes a tensor of others.
    Add(usize, usize),
    Matmul(usize, usize),
    Scale(usize, f32),
    Gather(usize, Vec<u32>),
    Concat(Vec<usize>),
    DropTensor(usize),
    Read(usize),
    /// The same, but nothing is written.
    Peek(usize),
    Top(usize, u32),
    /// Asks for a token and takes it, so many times, and writes what the tokens spell.
    Speak(usize, u32),
    Emit(String),
    EmitTokens(Vec<u32>),
    /// Begins a call of a tool.
    Call(String),
    Arguments(String),
    /// Emits the next token as arguments, so many times.
    SpeakArguments(usize, u32),
    /// Emits a text so many times.
    Flood(String, u32),
    /// Makes so many sequences, keeps none, and asks the last for a token in vain.
    Waste(u32),
    /// Writes a random number.
    Random,
    /// Writes what the request is like.
    Describe,
    /// Has a text encoded that is this one so many times, or so many of a token decoded, or logs such a line.
    Encode(String, usize),
    Decode(u32, usize),
    Log(String, usize),
    /// Calls itself so deep.
    Recurse(u32),
    /// So many turns of a loop.
    Spin(u64),
    Trap(String),
    Fail(String),
    /// The answer is over, at a limit.
    Finish,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct New {
    prompt: Option<Vec<u32>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    alternatives: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct How {
    tokens: Option<Vec<u32>>,
    mask: Option<Vec<u32>>,
    bias: Vec<(u32, f32)>,
    temperature: Option<f32>,
}

impl From<How> for Draw {
    fn from(how: How) -> Draw {
        Draw {
            allowed: match (how.tokens, how.mask) {
                (Some(tokens), _) => Allowed::Tokens(tokens),
                (None, Some(mask)) => Allowed::Mask(mask),
                (None, None) => Allowed::All,
            },
            bias: how.bias,
            temperature: how.temperature,
        }
    }
}

fn ask(sequence: &mut Sequence, how: How) -> bool {
    match sequence.ask(&how.into()) {
        Ok(()) => return true,
        Err(Exhausted::Context) => emit("[context]"),
        Err(Exhausted::Tokens) => emit("[tokens]"),
    }
    false
}

/// Takes a token and writes it down.
fn take(sequence: &mut Sequence) {
    let drawn = sequence.take();
    emit(&format!(" {}", drawn.token));
    if !drawn.alternatives.is_empty() {
        emit(&format!("@{}{:?}", drawn.logprob, drawn.alternatives));
    }
}

/// Which of some sequences has first what it was asked for.
fn first(all: &[Option<Sequence>], some: &[usize]) -> usize {
    let some = some.iter().map(|n| all[*n].as_ref().expect("not dropped"));
    wait_any(&some.collect::<Vec<_>>())
}

fn of(all: &mut [Option<Sequence>], n: usize) -> &mut Sequence {
    all[n].as_mut().expect("not dropped")
}

/// What is done after the call inside keeps this from becoming a loop.
fn down(depth: u32) -> u32 {
    match depth {
        0 => 0,
        depth => std::hint::black_box(down(depth - 1)) ^ depth,
    }
}

fn answer(request: Request) -> Result<Finish, Error> {
    let steps: Vec<Step> = serde_json::from_str(&request.args)?;
    let mut all: Vec<Option<Sequence>> = Vec::new();
    let mut tensors: Vec<Option<Tensor>> = Vec::new();
    for step in steps {
        let tensor = |n: usize| tensors[n].as_ref().expect("not dropped");
        match step {
            Step::New(new) => {
                let sampling = Sampling {
                    temperature: new.temperature.unwrap_or(request.sampling.temperature),
                    top_p: new.top_p.unwrap_or(request.sampling.top_p),
                    min_p: new.min_p.unwrap_or(request.sampling.min_p),
                    ..request.sampling
                };
                let prompt = new.prompt.as_ref().unwrap_or(&request.prompt);
                all.push(Some(match new.alternatives {
                    Some(alternatives) => Sequence::scored(prompt, sampling, alternatives),
                    None => Sequence::new(prompt, sampling),
                }));
            }
            Step::Fork(n) => {
                let fork = of(&mut all, n).fork();
                all.push(Some(fork));
            }
            Step::Length(n) => emit(&format!("({})", of(&mut all, n).length())),
            Step::Append(n, tokens) => of(&mut all, n).append(&tokens),
            Step::Truncate(n, length) => of(&mut all, n).truncate(length),
            Step::Ask(n) => drop(ask(of(&mut all, n), How::default())),
            Step::AskWith(n, how) => drop(ask(of(&mut all, n), how)),
            Step::Take(n) => take(of(&mut all, n)),
            Step::WaitAny(some) => emit(&format!("<{}>", first(&all, &some))),
            Step::Race(some, count) => {
                for n in &some {
                    ask(of(&mut all, *n), How::default());
                }
                for _ in 0..count {
                    let n = some[first(&all, &some)];
                    emit(&format!("<{n}>"));
                    take(of(&mut all, n));
                    ask(of(&mut all, n), How::default());
                }
            }
            Step::Drop(n) => all[n] = None,
            Step::Save(n, name, seconds) => {
                of(&mut all, n).save(&name, Duration::from_secs(seconds));
            }
            Step::Reopen(name) => match Sequence::reopen(&name, request.sampling) {
                Some(sequence) => all.push(Some(sequence)),
                None => emit("[none]"),
            },
            Step::Forget(name) => Sequence::forget(&name),
            Step::AskLogits(n) => of(&mut all, n).ask_logits()?,
            Step::TakeLogits(n) => tensors.push(Some(of(&mut all, n).take_logits())),
            Step::AskHidden(n) => of(&mut all, n).ask_hidden()?,
            Step::TakeHidden(n) => tensors.push(Some(of(&mut all, n).take_hidden())),
            Step::AskFrom(n, from) => of(&mut all, n).ask_from(tensor(from), &Draw::free())?,
            Step::Tensor(shape, values) => tensors.push(Some(Tensor::new(&shape, &values))),
            Step::Add(a, b) => tensors.push(Some(tensor(a) + tensor(b))),
            Step::Matmul(a, b) => tensors.push(Some(tensor(a).matmul(tensor(b)))),
            Step::Scale(n, by) => tensors.push(Some(tensor(n) * by)),
            Step::Gather(n, places) => tensors.push(Some(tensor(n).gather(places))),
            Step::Concat(parts) => {
                let parts: Vec<_> = parts.into_iter().map(tensor).collect();
                let whole = Tensor::concat(&parts, 0);
                tensors.push(Some(whole));
            }
            Step::DropTensor(n) => tensors[n] = None,
            Step::Read(n) => emit(&format!("{:?}", tensor(n).read())),
            Step::Peek(n) => drop(tensor(n).read()),
            Step::Top(n, count) => emit(&format!("{:?}", tensor(n).top(count))),
            Step::Speak(n, count) => {
                for _ in 0..count {
                    if !ask(of(&mut all, n), How::default()) {
                        break;
                    }
                    emit_tokens(&[of(&mut all, n).take().token]);
                }
            }
            Step::Emit(text) => emit(&text),
            Step::EmitTokens(tokens) => emit_tokens(&tokens),
            Step::Call(name) => begin_call(&name),
            Step::Arguments(fragment) => emit_arguments(&fragment),
            Step::SpeakArguments(n, count) => {
                for _ in 0..count {
                    if !ask(of(&mut all, n), How::default()) {
                        break;
                    }
                    emit_arguments(&format!("{},", of(&mut all, n).take().token));
                }
            }
            Step::Flood(text, times) => (0..times).for_each(|_| emit(&text)),
            Step::Waste(times) => {
                for _ in 0..times {
                    let mut sequence = Sequence::new(&request.prompt, request.sampling);
                    ask(&mut sequence, How::default());
                }
            }
            Step::Random => emit(&format!("<{:016x}>", random())),
            Step::Describe => emit(&format!("{request:?} {:?}", text::end_tokens())),
            Step::Encode(text, times) => drop(text::encode(&text.repeat(times))),
            Step::Decode(token, times) => drop(text::decode(&vec![token; times])),
            Step::Log(text, times) => realm_program::log(&text.repeat(times)),
            Step::Recurse(depth) => drop(std::hint::black_box(down(depth))),
            Step::Spin(times) => {
                for turn in 0..times {
                    std::hint::black_box(turn);
                }
            }
            Step::Trap(why) => panic!("{why}"),
            Step::Fail(why) => return Err(why.into()),
            Step::Finish => return Ok(Finish::Length),
        }
    }
    Ok(Finish::Stop)
}

program!(answer);
