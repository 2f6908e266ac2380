//! The engine alone: steps of decoding, and the reading of a prompt, without a gateway.
//!
//! ```sh
//! cargo bench -p realm-worker --bench engine -- MODEL_DIRECTORY --threads 2
//! ```
//!
//! What `realm bench` gives for the same streams, divided by this, is what the way through HTTP,
//! scheduler and ring leaves of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::engine::{Engine, ModelSource, Options};
use realm_worker::kernels::Attention;

#[derive(Parser)]
struct Args {
    /// A model's directory.
    model: PathBuf,
    /// Threads to compute on; as the worker chooses by default.
    #[arg(long)]
    threads: Option<u32>,
    /// Sequences that decode at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    streams: Vec<usize>,
    /// Tokens of each sequence before it decodes.
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Tokens that each sequence decodes.
    #[arg(long, default_value_t = 64)]
    output: usize,
    /// Tokens of the prompt that is read.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens of it that one step reads; as many as a step takes by default.
    #[arg(long)]
    chunk: Option<usize>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// An engine, and the blocks of each slot.
struct Alone {
    engine: Engine,
    /// Blocks of a slot.
    per_slot: usize,
    /// Tokens of a prompt that one step reads.
    chunk: usize,
}

impl Alone {
    fn load(args: &Args) -> anyhow::Result<Alone> {
        let tokens = (args.context + args.output).max(args.prompt);
        let options = Options {
            threads: args.threads,
            ..Options::default()
        };
        let source = ModelSource::Directory(args.model.clone());
        let engine = Engine::load(&source, &options, &mut |_, _| {})?;
        let per_slot = tokens.div_ceil(Attention::BLOCK);
        let (limits, most) = (engine.limits(), args.streams.iter().copied().max());
        let most = most.context("--streams is empty")?;
        anyhow::ensure!(
            most <= limits.max_sequences && most * per_slot <= limits.block_count,
            "{most} streams of {tokens} tokens do not fit"
        );
        let chunk = args.chunk.unwrap_or(limits.max_step_tokens);
        anyhow::ensure!(
            (1..=limits.max_step_tokens).contains(&chunk),
            "--chunk is not between 1 and the {} tokens of a step",
            limits.max_step_tokens
        );
        Ok(Alone {
            engine,
            per_slot,
            chunk,
        })
    }

    fn blocks(&self, slots: usize) -> Vec<i32> {
        (0..(slots * self.per_slot) as i32).collect()
    }

    /// Reads a new sequence of `len` tokens into `slot`, which draws its first token.
    fn read(&mut self, slot: usize, len: usize) -> anyhow::Result<Duration> {
        let sampling = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        self.engine
            .open(slot as u64, sampling, std::iter::empty(), &[], None)?;
        let tokens: Vec<_> = (0..len)
            .map(|at| 300 + (at * 31 + slot * 7) as i32 % 700)
            .collect();
        let blocks = self.blocks(slot + 1).split_off(slot * self.per_slot);
        let start = Instant::now();
        for (n, chunk) in tokens.chunks(self.chunk).enumerate() {
            let context = n * self.chunk;
            let last = context + chunk.len() == len;
            self.engine.step(Step {
                slots: &[slot as i32],
                starts: &[0, chunk.len() as i32],
                context: &[context as i32],
                flags: &[if last { SAMPLE } else { 0 }],
                index: &[0],
                tokens: chunk,
                blocks: &blocks,
                targets: &[],
                top: 0,
            })?;
        }
        Ok(start.elapsed())
    }

    /// Time in which `streams` sequences of `context` tokens decode `output` tokens each.
    fn decode(&mut self, streams: usize, args: &Args) -> anyhow::Result<Duration> {
        for slot in 0..streams {
            self.read(slot, args.context)?;
        }
        let slots: Vec<_> = (0..streams as i32).collect();
        let starts: Vec<_> = (0..=streams as i32).collect();
        let blocks = self.blocks(streams);
        let start = Instant::now();
        for n in 0..args.output as i32 {
            self.engine.step(Step {
                slots: &slots,
                starts: &starts,
                context: &vec![args.context as i32 + n; streams],
                flags: &vec![SAMPLE | INPUT_SAMPLED; streams],
                index: &vec![n + 1; streams],
                tokens: &vec![-1; streams],
                blocks: &blocks,
                targets: &[],
                top: 0,
            })?;
        }
        Ok(start.elapsed())
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut alone = Alone::load(&args)?;
    alone.read(0, args.prompt)?; // the first touch of weights and activations
    println!("decode, {} tokens each:", args.output);
    for &streams in &args.streams {
        let time = alone.decode(streams, &args)?.as_secs_f64();
        let (steps, tokens) = (args.output as f64, (streams * args.output) as f64);
        let (step, rate) = (time / steps * 1e3, tokens / time);
        println!("  {streams:3} streams: {step:8.2} ms a step, {rate:8.1} tok/s");
    }
    let time = alone.read(0, args.prompt)?.as_secs_f64();
    let rate = args.prompt as f64 / time;
    println!("prompt of {}: {rate:.1} tok/s", args.prompt);
    Ok(())
}
