//! What the code of tenants costs a worker: starting instances, asking them, and having many. And what
//! grammars cost it.
//!
//! ```sh
//! cargo bench -p realm-worker --bench programs -- target/programs/choice.wasm
//! ```
//!
//! The program must take the arguments of `choice`. With `--allow target/programs/allow-flood.wasm` the plans of a
//! step are measured, too: what 32 instances take of a processor, each of which allows 1,000 tokens.
//! Wants an idle machine.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use realm_shared::grammar::Grammar;
use realm_shared::wire::Allotment;
use realm_worker::engine::ModelSource;
use realm_worker::tenant::{
    Allowed, Guide, Host, Pool, Programs, Start, Steering, Verdict, Vocabulary, compile,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};

#[derive(Parser)]
struct Args {
    /// A component.
    component: PathBuf,
    /// Instances that are started one after the other.
    #[arg(long, default_value_t = 20_000)]
    starts: usize,
    /// Instances that live at once.
    #[arg(long, default_value_t = 1000)]
    live: u32,
    /// A processor that allows some tokens at every step.
    #[arg(long)]
    allow: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Long choices that share nothing: one token after the other has to be drawn.
const CHOICES: &str = r#"{"choices": ["The quick brown fox jumps.", "A lazy dog sleeps all day.", "Over hills and far away."]}"#;

/// A schema as requests have them.
const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false,
    "required": ["name", "email", "kind", "age", "tags", "address"],
    "properties": {"name": {"type": "string", "maxLength": 80}, "email": {"type": "string", "format": "email"},
        "kind": {"enum": ["customer", "supplier", "employee"]}, "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "address": {"type": "object", "additionalProperties": false, "required": ["street", "city"],
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}}}"#;

fn start(programs: &Programs, tenant: u32) -> Steering {
    let args = CHOICES.to_owned();
    begin(programs, tenant, Guide::Processor { program: 1, args })
}

fn begin(programs: &Programs, tenant: u32, guide: Guide) -> Steering {
    programs.start(Start {
        guide,
        allotment: Allotment {
            tenant,
            ..Allotment::default()
        },
        prompt: &[1, 2, 3],
        generated: &[],
        vocabulary: 2048,
        key: 0,
        end_tokens: &[2],
        min_tokens: 0,
    })
}

/// Asks until there is an answer, as an engine does whose forward pass is over.
fn answer(steering: &mut Steering) -> anyhow::Result<Verdict> {
    loop {
        match steering.verdict() {
            Verdict::Late => std::hint::spin_loop(),
            Verdict::Failed(failure) => bail!("{failure}"),
            verdict => return Ok(verdict),
        }
    }
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3;
    let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
    println!("{what:<42} {p50:9.1} {p99:9.1} {most:9.1}");
}

/// Bytes of memory that this process has for itself.
fn private_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let clean = of("Private_Clean:").context("no Private_Clean")?;
    Ok((clean + of("Private_Dirty:").context("no Private_Dirty")?) << 10)
}

/// A text of `SCHEMA` from its first token on: a model that takes any token that is allowed.
fn form(programs: &Programs, rounds: u32) -> anyhow::Result<()> {
    let (mut anew, mut again, mut next) = (Vec::new(), Vec::new(), Vec::new());
    let mut random = 1_u64;
    // Nobody waits for what is made once for the model.
    let grammar = |text: String| Guide::Grammar(Grammar::JsonSchema(text));
    answer(&mut begin(programs, 0, grammar("{}".into())))?;
    for round in 1..=rounds {
        // What one tenant's compiled is nothing to the next.
        for times in [&mut anew, &mut again] {
            let begun = Instant::now();
            let mut steering = begin(programs, round, grammar(SCHEMA.into()));
            answer(&mut steering)?;
            times.push(begun.elapsed());
        }
        let mut steering = begin(programs, round, grammar(SCHEMA.into()));
        for _ in 0..100 {
            let Verdict::Draw(draw) = answer(&mut steering)? else {
                break;
            };
            let Allowed::Mask(words) = &draw.allowed else {
                bail!("a grammar allows by a mask");
            };
            let mut tokens = Vec::new();
            for (word, at) in words.iter().zip((0..).step_by(32)) {
                tokens.extend(
                    (0..32)
                        .filter(|bit| word >> bit & 1 == 1)
                        .map(|bit| at + bit),
                );
            }
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let token = tokens[(random >> 33) as usize % tokens.len()];
            if token == 2 {
                break;
            }
            let begun = Instant::now();
            steering.accept(token);
            answer(&mut steering)?;
            next.push(begun.elapsed());
        }
    }
    show("schema to first mask, compiled anew", anew);
    show("the same, remembered", again);
    show("token to next mask, there and back", next);
    Ok(())
}

/// Sequences that are steered in a step, and how long its forward pass takes.
const ROWS: u32 = 32;
const PASS: Duration = Duration::from_millis(5);

/// Processor time, of all threads, that the plans of a step take while its forward pass runs, for which a sleep
/// stands; and that of a step in which nothing is planned.
fn plans(programs: &Programs, rounds: u32) -> anyhow::Result<()> {
    let args = "null".to_owned();
    let guide = Guide::Processor { program: 2, args };
    let mut rows: Vec<_> = (1..=ROWS)
        .map(|tenant| begin(programs, tenant, guide.clone()))
        .collect();
    let (mut planned, mut idle) = (Vec::new(), Vec::new());
    for round in 0..2 * rounds {
        let begun = clock_gettime(ClockId::ProcessCPUTime);
        for row in &mut rows {
            let Verdict::Draw(draw) = answer(row)? else {
                bail!("the program does not allow tokens");
            };
            let Allowed::Tokens(tokens) = &draw.allowed else {
                bail!("the program does not name the tokens that it allows");
            };
            if round % 2 == 0 {
                row.accept(tokens[round as usize % tokens.len()]);
            }
        }
        std::thread::sleep(PASS);
        let (from, to) = (begun, clock_gettime(ClockId::ProcessCPUTime));
        let took = (to.tv_sec - from.tv_sec) as f64 * 1e9 + (to.tv_nsec - from.tv_nsec) as f64;
        let took = Duration::from_nanos(took as u64);
        match round % 2 {
            0 => planned.push(took),
            _ => idle.push(took),
        }
    }
    show("processor time of a step with 32 plans", planned);
    show("the same without", idle);
    Ok(())
}

/// Memory of texts that are followed, each at its beginning.
fn texts(programs: &Programs, count: u32) -> anyhow::Result<()> {
    let guide = Guide::Grammar(Grammar::JsonSchema(SCHEMA.into()));
    answer(&mut begin(programs, 0, guide.clone()))?;
    let before = private_memory()?;
    let mut all: Vec<_> = (0..count)
        .map(|_| begin(programs, 0, guide.clone()))
        .collect();
    for steering in &mut all {
        answer(steering)?;
    }
    let each = private_memory()?.saturating_sub(before) / u64::from(count.max(1));
    println!(
        "\n{count} texts followed: {:.1} KiB each",
        each as f64 / 1024.0
    );
    Ok(())
}

/// A component, compiled.
fn compiled(path: &Path) -> anyhow::Result<OwnedFd> {
    let component =
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let begun = Instant::now();
    let code = compile(&component)?.code;
    println!(
        "compiled in {:.0?}, {} bytes to {}",
        begun.elapsed(),
        component.len(),
        code.len()
    );
    let mut file = File::from(memfd_create("code", MemfdFlags::CLOEXEC)?);
    file.write_all(&code)?;
    Ok(file.into())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let code = compiled(&args.component)?;
    let host = Arc::new(Host::new(Pool::default()));
    let programs = Programs::new(host, Arc::new(Vocabulary::of(&ModelSource::Embedded)));
    let begun = Instant::now();
    programs.add(1, "bench", code);
    println!(
        "loaded in {:.0?}, with all that the first program needs\n",
        begun.elapsed()
    );

    println!("{:<42} {:>9} {:>9} {:>9}", "µs", "p50", "p99", "most");
    show(
        "start, before its code runs",
        programs.time_starts(1, args.starts)?,
    );
    let mut times = Vec::new();
    for _ in 0..args.starts {
        let begun = Instant::now();
        let mut steering = start(&programs, 1);
        answer(&mut steering)?;
        times.push(begun.elapsed());
    }
    show("start to first plan, on another thread", times);
    let mut times = Vec::new();
    while times.len() < args.starts {
        let mut steering = start(&programs, 1);
        loop {
            let token = match answer(&mut steering)? {
                Verdict::Draw(draw) => match &draw.allowed {
                    Allowed::Tokens(tokens) => tokens[times.len() % tokens.len()],
                    _ => bail!("the program is not like `choice`"),
                },
                Verdict::Force(token) => token,
                _ => break,
            };
            let begun = Instant::now();
            steering.accept(token);
            answer(&mut steering)?;
            times.push(begun.elapsed());
            // Some never end an answer.
            if times.len() == args.starts {
                break;
            }
        }
    }
    show("token to next plan, there and back", times);
    if let Some(allow) = &args.allow {
        programs.add(2, "allow", compiled(allow)?);
        plans(&programs, 1000)?;
    }
    form(&programs, 200)?;
    texts(&programs, 200)?;

    let before = private_memory()?;
    let mut all: Vec<_> = (1..=args.live)
        .map(|tenant| start(&programs, tenant))
        .collect();
    for steering in &mut all {
        answer(steering)?;
    }
    let each = private_memory()?.saturating_sub(before) / u64::from(args.live.max(1));
    println!(
        "\n{} instances live: {:.1} KiB each",
        all.len(),
        each as f64 / 1024.0
    );
    Ok(())
}
