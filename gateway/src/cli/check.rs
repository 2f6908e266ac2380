//! `realm program check`: what a component is, and what it does when it is tried.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use realm_shared::run::{Dials, Message, Request, Role};
use serde::Serialize;

use super::component::{CompilerArgs, read};
use super::run::hear;
use crate::api::{ApiError, allotment, random};
use crate::batching::{Allowance, Instance, Priority, Sequence, SequenceId, Steering, TenantId};
use crate::config::{File, ModelSpec, TenantSettings, WorkerSettings};
use crate::programs::{Kind, Program, Programs};
use crate::tenants::ANYONE;
use crate::workers::{Generation, Model, Task};

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
    let verdict = Programs::check(&args.compiler.find(file), &name, component).await;
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
    let heard = hear(&mut generation, &model.text, |piece| {
        let mut out = std::io::stdout();
        out.write_all(piece.as_bytes())?;
        out.flush()
    });
    let heard = heard.await;
    println!();
    if let Err(reason) = heard? {
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

/// What is asked, as templates see it.
#[derive(Serialize)]
struct Asked<'a> {
    role: &'static str,
    content: &'a str,
}

impl Trial<'_> {
    /// Has it answer.
    fn begin(&self, program: Program) -> anyhow::Result<Generation> {
        let Trial { model, args, .. } = self;
        let limits = model
            .limits()
            .context("the worker has not said its limits")?;
        let text = &model.text;
        let asked = [Asked {
            role: "user",
            content: &args.prompt,
        }];
        let prompt = match &text.template {
            Some(template) => text.tokenizer.encode(&template.render(&asked)?, false)?,
            None => text.tokenizer.encode(&args.prompt, true)?,
        };
        let left = limits.max_context.saturating_sub(prompt.len() as u32);
        if left == 0 {
            bail!(
                "--prompt fills the model's context of {} tokens",
                limits.max_context
            );
        }
        let max_tokens = args.max_tokens.clamp(1, left);
        let mut sampling = text.sampling();
        sampling.key = random::key(args.seed, 0);
        let (program, allotment) = (Arc::new(program), allotment(self.limits));
        let generation = match program.kind {
            Kind::Processor => model.generate(
                vec![Sequence {
                    id: SequenceId(0),
                    tenant: TenantId::ANYONE,
                    prompt: prompt.into(),
                    max_tokens,
                    sampling,
                    bias: Arc::new([]),
                    allowance: Allowance::default(),
                    priority: Priority::default(),
                    prompt_logprobs: false,
                    steering: Some(Steering::Instance(Instance {
                        program,
                        args: self.json.as_str().into(),
                        allotment,
                    })),
                }],
                None,
            ),
            Kind::Program => model.run(
                Task {
                    tenant: TenantId::ANYONE,
                    allowance: Allowance::default(),
                    priority: Priority::default(),
                    program,
                    allotment,
                    saved: self.limits.program_limits().saved_tokens,
                    wall: self.limits.program_limits().wall,
                    request: Request {
                        messages: vec![Message {
                            role: Role::User,
                            content: args.prompt.clone(),
                        }],
                        prompt,
                        args: self.json.clone(),
                        dials: Dials {
                            temperature: sampling.temperature,
                            top_p: sampling.top_p,
                            top_k: sampling.top_k,
                            min_p: sampling.min_p,
                        },
                        max_tokens,
                        budget: u64::from(max_tokens) * u64::from(allotment.sequences),
                        key: sampling.key,
                        end_tokens: text.stop_ids.clone(),
                        context: limits.max_context,
                    },
                },
                None,
            ),
        };
        Ok(generation?)
    }
}
