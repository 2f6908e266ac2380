//! `realm run`

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use realm_shared::run::Part;
use realm_shared::wire::Sampling;
use serde::Serialize;
use serde_json::Map;

use crate::api::{ApiError, random};
use crate::batching::{Allowance, Event, FailReason, Priority, Sequence, SequenceId, TenantId};
use crate::config::WorkerSettings;
use crate::text::{Detokenizer, Text};
use crate::workers::{Generation, Model};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to ask. Without it, a chat on a terminal, or all of standard input as one prompt
    prompt: Option<String>,
    /// What the model is told before anything else
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens in an answer [default: what the context leaves]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token [default: the model's own, or 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Number that makes an answer repeatable [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    workers: WorkerSettings,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Message {
    pub(super) role: &'static str,
    pub(super) content: String,
}

pub(super) async fn run(args: Args, file: WorkerSettings) -> anyhow::Result<ExitCode> {
    let workers = Arc::new(args.workers.clone().resolve(file)?);
    let [spec] = workers.models.as_slice() else {
        bail!("`realm run` talks to one model: give one --model");
    };
    let model = Model::load(spec.clone(), workers.clone()).await?;
    model.ready().await?;
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(Message {
            role: "system",
            content: system.clone(),
        });
    }
    let interactive = args.prompt.is_none() && std::io::stdin().is_terminal();
    if !interactive {
        let prompt = match &args.prompt {
            Some(prompt) => prompt.clone(),
            None => {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("cannot read standard input")?;
                text
            }
        };
        messages.push(Message {
            role: "user",
            content: prompt,
        });
        answer(&model, &args, &messages).await?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "Chatting with {}. An empty line or Ctrl-D ends.",
        model.name
    );
    while let Some(line) = read_line().await? {
        messages.push(Message {
            role: "user",
            content: line,
        });
        let content = answer(&model, &args, &messages).await?;
        messages.push(Message {
            role: "assistant",
            content,
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// One line from the terminal; `None` at the end.
async fn read_line() -> anyhow::Result<Option<String>> {
    tokio::task::spawn_blocking(|| {
        print!("> ");
        std::io::stdout().flush()?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        let line = line.trim();
        Ok((!line.is_empty()).then(|| line.to_owned()))
    })
    .await?
}

/// Streams the model's answer to standard output, and returns it.
async fn answer(model: &Model, args: &Args, messages: &[Message]) -> anyhow::Result<String> {
    let text = &model.text;
    let (prompt, left) = encode(model, messages)?;
    let max_tokens = args.max_tokens.unwrap_or(left).clamp(1, left);
    let sequence = Sequence {
        id: SequenceId(0),
        tenant: TenantId::ANYONE,
        prompt: prompt.into(),
        max_tokens,
        sampling: sampling(model, args)?,
        bias: Arc::new([]),
        allowance: Allowance::default(),
        priority: Priority::default(),
        prompt_logprobs: false,
        steering: None,
    };
    let mut generation = model.generate(vec![sequence], None)?;
    let answer = show(&mut generation, text)
        .await?
        .map_err(|reason| anyhow::anyhow!("the answer broke off: {}", ApiError::from(reason)))?;
    writeln!(std::io::stdout())?;
    Ok(answer)
}

/// The tokens of a conversation up to where an answer begins, and how many the answer may have.
pub(super) fn encode(model: &Model, messages: &[Message]) -> anyhow::Result<(Vec<u32>, u32)> {
    let text = &model.text;
    let limits = model
        .limits()
        .context("the worker has not said its limits")?;
    let prompt = match &text.template {
        Some(template) => text
            .tokenizer
            .encode(&template.render(messages, &[], &Map::new())?, false)?,
        // A model without a template completes what it was given.
        None => text
            .tokenizer
            .encode(messages.last().map_or("", |m| &m.content), true)?,
    };
    let left = limits.max_context.saturating_sub(prompt.len() as u32);
    if left == 0 {
        bail!(
            "the conversation fills the model's context of {} tokens: start again",
            limits.max_context
        );
    }
    Ok((prompt, left))
}

/// Streams an answer to standard output up to its end, or to why it has none, and returns it.
pub(super) async fn show(
    generation: &mut Generation,
    text: &Text,
) -> std::io::Result<Result<String, FailReason>> {
    let mut answer = String::new();
    let mut detokenizer = if text.template.is_some() {
        Detokenizer::at_start(&text.tokenizer)
    } else {
        Detokenizer::within_text()
    };
    while let Some((_, event)) = generation.next().await {
        let mut piece = String::new();
        match event {
            Event::Token { token, .. } if !text.stop_ids.contains(&token) => {
                detokenizer.push(&text.tokenizer, token, &mut piece);
            }
            Event::Failed(reason) => return Ok(Err(reason)),
            Event::Finished(_) => detokenizer.finish(&mut piece),
            Event::Emitted {
                part: Part::Text(text),
                ..
            } => piece = text,
            // Whoever is asked here has no tools to call.
            Event::Emitted { .. }
            | Event::Started { .. }
            | Event::Token { .. }
            | Event::PromptLogprobs { .. } => {}
        }
        let mut out = std::io::stdout();
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        answer.push_str(&piece);
    }
    Ok(Ok(answer))
}

fn sampling(model: &Model, args: &Args) -> anyhow::Result<Sampling> {
    let mut sampling = model.text.sampling();
    sampling.key = random::key(args.seed.unwrap_or_else(random::unpredictable), 0);
    if let Some(temperature) = args.temperature {
        if !(0.0..=100.0).contains(&temperature) {
            bail!("--temperature {temperature} is not between 0 and 100");
        }
        sampling.temperature = temperature;
    }
    Ok(sampling)
}
