//! What the code of tenants costs a worker: starting instances, asking them, and having many.
//!
//! ```sh
//! cargo bench -p realm-worker --bench programs -- target/programs/choice.wasm
//! ```
//!
//! The program must take the arguments of `choice`. Wants an idle machine.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use realm_shared::wire::Allotment;
use realm_worker::engine::ModelSource;
use realm_worker::tenant::{Allowed, Programs, Start, Steering, Verdict, Vocabulary, compile};
use rustix::fs::{MemfdFlags, memfd_create};

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
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Long choices that share nothing: one token after the other has to be drawn.
const CHOICES: &str = r#"{"choices": ["The quick brown fox jumps.", "A lazy dog sleeps all day.", "Over hills and far away."]}"#;

fn start(programs: &Programs, tenant: u32) -> Steering {
    programs.start(Start {
        program: 1,
        allotment: Allotment {
            tenant,
            ..Allotment::default()
        },
        args: CHOICES.to_owned(),
        prompt: &[1, 2, 3],
        generated: &[],
        vocabulary: 2048,
        key: 0,
        end_tokens: &[2],
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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let component = std::fs::read(&args.component)
        .with_context(|| format!("cannot read {}", args.component.display()))?;
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
    let programs = Programs::new(Arc::new(Vocabulary::of(&ModelSource::Embedded)));
    let begun = Instant::now();
    programs.add(1, "bench", file.into());
    println!(
        "loaded in {:.0?}, with all that the first program needs\n",
        begun.elapsed()
    );

    println!("{:<42} {:>9} {:>9} {:>9}", "µs", "p50", "p99", "most");
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
        }
    }
    show("token to next plan, there and back", times);

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
