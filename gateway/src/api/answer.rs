//! The common course of a request that generates: check, cut into tokens, submit, respond.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Response;

use super::body::Body;
use super::error::ApiError;
use super::params::Params;
use super::processor;
use super::random;
use super::run::{Format, Run, respond_stream, respond_whole};
use crate::batching::sequence::{FinishReason, Sequence, Steering};
use crate::programs::Programs;
use crate::tenants::Caller;
use crate::workers::{Generation, Model, ModelLimits};

/// Bodies up to this many bytes are cut into tokens in place, as that takes less time than
/// handing the work to another thread is worth.
const IN_PLACE: usize = 16 * 1024;

/// How soon to ask again for a model whose first worker is still loading.
const LOADING: Duration = Duration::from_secs(1);

/// What all chunks of an answer have in common.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) id: String,
    /// Unix time in seconds.
    pub(super) created: u64,
    pub(super) model: String,
    /// For those that asked for one.
    pub(super) service_tier: Option<&'static str>,
}

impl Head {
    /// Names the software, so that answers of different versions can be told apart.
    pub(super) const FINGERPRINT: &str = concat!("realm-", env!("CARGO_PKG_VERSION"));

    pub(super) fn new(prefix: &str, model: &str, service_tier: Option<&'static str>) -> Self {
        Head {
            id: random::id(prefix),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |elapsed| elapsed.as_secs()),
            model: model.to_owned(),
            service_tier,
        }
    }
}

/// A finish reason by its OpenAI name.
pub(super) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// What the model can take of this caller, once a worker has told.
pub(super) fn limits(model: &Model, caller: &Caller) -> Result<ModelLimits, ApiError> {
    let limits = model.limits();
    let mut limits = limits.ok_or_else(|| ApiError::unavailable(LOADING, "it is being loaded"))?;
    let settings = caller.tenant.settings();
    if let Some(most) = settings.max_context {
        limits.max_context = limits.max_context.min(most.get());
    }
    // A sequence that needs more than its tenant's part of the blocks would run past it.
    let share = settings.allowance().kv_share;
    if share < 1.0 {
        let blocks = (share * f64::from(limits.block_count)) as u32;
        let tokens = blocks.max(1).saturating_mul(limits.block_size);
        limits.max_context = limits.max_context.min(tokens);
    }
    Ok(limits)
}

/// Runs `work` on a body of `size` bytes where it does not keep other requests waiting.
pub(super) async fn off_reactor<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if size <= IN_PLACE {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::internal("The prompt could not be processed"))
}

/// Starts the generation and responds as the request asked. `id` is that of the answer.
pub(super) async fn submit<F: Format>(
    model: &Model,
    caller: &Caller,
    id: String,
    mut sequences: Vec<Sequence>,
    run: Run<F>,
    params: &Params,
    programs: &Programs,
) -> Result<Response<Body>, ApiError> {
    let output: u64 = sequences.iter().map(|s| u64::from(s.max_tokens)).sum();
    let tokens = run.prompt_tokens() as u64 + output;
    let settings = caller.tenant.settings();
    let steering = match &params.form {
        Some(form) => Some(Steering::Form(form.steering(&settings)?)),
        None => {
            let named = params.processor.as_ref();
            let instance = processor::steering(programs, caller, &model.name, named).await?;
            instance.map(Steering::Instance)
        }
    };
    for (choice, sequence) in (0..).zip(&mut sequences) {
        sequence.steering = steering.clone();
        if let Some(Steering::Instance(instance)) = &mut sequence.steering {
            instance.allotment.choice = choice;
        }
        sequence.tenant = caller.tenant.id;
        sequence.allowance = settings.allowance();
        sequence.priority = params.urgency.within(settings.priority());
    }
    let reservation = caller.reserve(id, &model.name, None, sequences.len(), tokens)?;
    let generation = model.generate(sequences, Some(reservation))?;
    Ok(respond(run, generation, params).await)
}

/// Marks a response to a request that a model has taken, whatever became of it: it is in the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Taken;

/// Responds with a generation as the request asked.
pub(super) async fn respond<F: Format>(
    run: Run<F>,
    generation: Generation,
    params: &Params,
) -> Response<Body> {
    let run = run.with_form(params.form.as_ref().map(|form| form.param));
    let response = if params.stream {
        respond_stream(run, generation).await
    } else {
        respond_whole(run, generation).await
    };
    let mut response = response.unwrap_or_else(ApiError::into_response);
    response.extensions_mut().insert(Taken);
    response
}
