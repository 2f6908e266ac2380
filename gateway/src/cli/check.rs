//! `realm program check`: what a component is, and what it does when it is tried.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use realm_shared::run::{Message, Role, Tools};

use super::component::{CompilerArgs, read};
use super::run::{self, encode, show};
use crate::api::{ApiError, Chat, random, task};
use crate::batching::{Allowance, Instance, Priority, Sequence, SequenceId, Steering, TenantId};
use crate::config::{File, ModelSpec, TenantSettings, WorkerSettings};
use crate::programs::{Kind, Program, Programs};
use crate::tenants::ANYONE;
use crate::workers::{Generation, Model};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A WebAssembly component
    file: PathBuf,
    /// What to ask the model for a try
    #[arg(long, value_name = "TEXT", default_value = "Hello!")]
    prompt: String,
    /// What the component is told, as JSON
    #[arg(long, value_name = "JSON", default_value = "null")]
    args: String,
    /// Most tokens of the try
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_tokens: u32,
    /// Number that the try follows from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compile it, and do not try it
    #[arg(long)]
    no_try: bool,
    /// Model directory as on the Hugging Face hub, or `embedded`
    #[arg(long, value_name = "DIR", default_value = "embedded")]
    model: ModelSpec,
    #[command(flatten)]
    compiler: CompilerArgs,
}

pub(super) async fn check(args: Args, file: &File) -> anyhow::Result<ExitCode> {
    let (name, component) = (args.file.display().to_string(), read(&args.file)?);
    let json = serde_json::from_str::<serde_json::Value>(&args.args);
    let json = json.context("--args is no JSON")?.to_string();
    let (bytes, begun) = (component.len(), Instant::now());
    let verdict = Programs::check(&args.compiler.find(file)?, &name, component).await;
    let verdict = verdict.with_context(|| name.clone())?;
    let kind = verdict.program.kind;
    println!(
        "{name}: a {kind} that can be stored; {bytes} bytes, compiled to {} in {:.2} s",
        verdict.compiled_bytes,
        begun.elapsed().as_secs_f64(),
    );
    println!("imports: {}", verdict.interfaces.imports.join(", "));
    println!("exports: {}", verdict.interfaces.exports.join(", "));
    if args.no_try {
        return Ok(ExitCode::SUCCESS);
    }
    let settings = WorkerSettings {
        model: vec![args.model.clone()],
        worker: args.compiler.worker.clone(),
        require_sandbox: args.compiler.require_sandbox,
        ..WorkerSettings::default()
    };
    let file_settings = WorkerSettings {
        model: Vec::new(),
        attach: Vec::new(),
        ..file.worker.clone()
    };
    let workers = Arc::new(settings.resolve(file_settings)?);
    let model = Model::load(args.model.clone(), workers).await?;
    model.ready().await?;
    let trial = Trial {
        model: &model,
        limits: file.tenants.of(ANYONE),
        args: &args,
        json,
    };
    println!("asked {:?}, with {}, it answers:", args.prompt, trial.json);
    let mut generation = trial.begin(verdict.program)?;
    let shown = show(&mut generation, &model.text).await;
    println!();
    if let Err(reason) = shown? {
        bail!("{}", ApiError::from(reason));
    }
    Ok(ExitCode::SUCCESS)
}

/// A component that is tried.
struct Trial<'a> {
    model: &'a Model,
    limits: &'a TenantSettings,
    args: &'a Args,
    json: String,
}

impl Trial<'_> {
    /// Has it answer.
    fn begin(&self, program: Program) -> anyhow::Result<Generation> {
        let Trial { model, args, .. } = self;
        let asked = run::Message {
            role: "user",
            content: args.prompt.clone(),
        };
        let (prompt, left) = encode(model, &[asked])?;
        let context = left + prompt.len() as u32;
        let mut sampling = model.text.sampling();
        sampling.key = random::key(args.seed, 0);
        let mut sequence = Sequence {
            id: SequenceId(0),
            tenant: TenantId::ANYONE,
            prompt: prompt.into(),
            max_tokens: args.max_tokens.clamp(1, left),
            sampling,
            bias: Arc::new([]),
            allowance: Allowance::default(),
            priority: Priority::default(),
            prompt_logprobs: false,
            steering: None,
        };
        let (program, json) = (Arc::new(program), &self.json);
        let generation = match program.kind {
            Kind::Processor => {
                sequence.steering = Some(Steering::Instance(Instance {
                    program,
                    args: json.as_str().into(),
                    allotment: self.limits.allotment(),
                }));
                model.generate(vec![sequence], None)
            }
            Kind::Program => {
                let asked = Message {
                    role: Role::User,
                    content: args.prompt.clone(),
                    tool_calls: Vec::new(),
                    tool_call_id: None,
                };
                let chat = Chat {
                    messages: vec![asked],
                    tools: Tools::default(),
                    args: json.clone(),
                };
                let task = task(program, chat, &sequence, context, self.limits);
                model.run(task, None)
            }
        };
        Ok(generation?)
    }
}
