//! Programs that are called as models.

use std::sync::Arc;

use http::Response;
use realm_shared::run::{self, Request};
use serde_json::Value;

use super::answer::respond;
use super::body::Body;
use super::error::ApiError;
use super::fields::Fields;
use super::messages::Message;
use super::models;
use super::params::Params;
use super::processor::args;
use super::run::{Format, Run};
use super::tools::Tools;
use crate::batching::sequence::Sequence;
use crate::config::TenantSettings;
use crate::programs::{Kind, Program, ProgramError, ProgramRecord, Programs};
use crate::tenants::Caller;
use crate::workers::{Model, ModelLimits, Models, Task};

/// Takes `program.args` out of a request, as JSON.
pub(super) fn take_args(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some(mut fields) = fields.object("program")? else {
        return Ok(None);
    };
    let args = args(&mut fields)?;
    fields.finish()?;
    Ok(Some(args))
}

/// What a caller means by the name of a model: one, or a program and the model that it draws from. A
/// model goes before a program of its name.
pub(super) async fn find(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    name: &str,
) -> Result<(Option<Arc<Program>>, Arc<Model>), ApiError> {
    let missing = match models::find(models, caller, name) {
        Ok(model) => return Ok((None, model)),
        Err(missing) => missing,
    };
    let program = match programs.find(&caller.tenant.name, name).await {
        Ok(program) => program,
        Err(ProgramError::Off | ProgramError::NotFound(_)) => return Err(missing),
        Err(error) => return Err(error.into()),
    };
    if program.kind != Kind::Program {
        return Err(ApiError::conflict(
            "model",
            format!(
                "`{name}` is a processor, which steers the answers of a model: name that as \
                 'model', and this as 'processor.name'."
            ),
        ));
    }
    let model = base(models, caller, program.base.as_deref())?;
    Ok((Some(program), model))
}

/// The model that a program draws from: the one that it is made for, or the default one.
fn base(models: &Models, caller: &Caller, base: Option<&str>) -> Result<Arc<Model>, ApiError> {
    match base {
        Some(base) => models::find(models, caller, base),
        None => {
            let all = models.all();
            let settings = caller.tenant.settings();
            let mut all = all.into_iter();
            all.find(|model| settings.allows(&model.name))
                .ok_or_else(|| ApiError::model_not_found(""))
        }
    }
}

/// The caller's programs that answer requests, each with the model that it draws from.
pub(super) async fn list(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
) -> Result<Vec<(ProgramRecord, Arc<Model>)>, ApiError> {
    let records = match programs.usable(&caller.tenant.name).await {
        Ok(records) => records,
        Err(ProgramError::Off) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let answering = records
        .into_iter()
        .filter(|record| record.kind == Kind::Program)
        // What a model's name hides cannot be called.
        .filter(|record| models::find(models, caller, record.name.as_str()).is_err());
    let with_base = answering.filter_map(|record| {
        let base = base(models, caller, record.base.as_deref()).ok()?;
        Some((record, base))
    });
    Ok(with_base.collect())
}

/// A request that a program is to answer.
pub(super) struct Asked {
    pub(super) program: Arc<Program>,
    pub(super) model: Arc<Model>,
    pub(super) messages: Vec<Message>,
    pub(super) tools: Tools,
    pub(super) args: Option<String>,
    pub(super) limits: ModelLimits,
    /// What the model itself would do.
    pub(super) sequence: Sequence,
    /// Name of the answer.
    pub(super) id: String,
}

/// Has a program answer, and responds as the request asked.
pub(super) async fn submit<F: Format>(
    asked: Asked,
    caller: &Caller,
    run: Run<F>,
    params: &Params,
) -> Result<Response<Body>, ApiError> {
    let settings = caller.tenant.settings();
    let Asked {
        program,
        model,
        messages,
        tools,
        args,
        limits,
        sequence,
        id,
    } = asked;
    let sequence = Sequence {
        tenant: caller.tenant.id,
        allowance: settings.allowance(),
        priority: params.urgency.within(settings.priority()),
        ..sequence
    };
    let chat = Chat {
        messages: messages.into_iter().map(run::Message::from).collect(),
        tools: tools.into_said(),
        args: args.unwrap_or_else(|| Value::Null.to_string()),
    };
    let context = limits.max_context;
    let task = task(program, chat, &sequence, context, &settings);
    // All that it may draw, and read for that.
    let tokens = run.prompt_tokens() as u64 + task.request.budget;
    let sequences = task.allotment.sequences as usize;
    let reservation =
        caller.reserve(id, &model.name, Some(&task.program.name), sequences, tokens)?;
    let generation = model.run(task, Some(reservation))?;
    Ok(respond(run, generation, params).await)
}

/// What is said to a program.
pub(crate) struct Chat {
    pub(crate) messages: Vec<run::Message>,
    pub(crate) tools: run::Tools,
    /// As JSON.
    pub(crate) args: String,
}

/// What a program is to do where the model itself would compute this sequence.
pub(crate) fn task(
    program: Arc<Program>,
    chat: Chat,
    sequence: &Sequence,
    context: u32,
    settings: &TenantSettings,
) -> Task {
    let allotment = settings.allotment();
    let sampling = &sequence.sampling;
    let end_tokens = sampling.stop_ids.iter().take(sampling.stop_count as usize);
    Task {
        tenant: sequence.tenant,
        allowance: sequence.allowance,
        priority: sequence.priority,
        program,
        allotment,
        saved: settings.saved_tokens(),
        wall: settings.program_wall(),
        request: Request {
            messages: chat.messages,
            prompt: sequence.prompt.to_vec(),
            args: chat.args,
            dials: sampling.into(),
            max_tokens: sequence.max_tokens,
            budget: u64::from(sequence.max_tokens) * u64::from(allotment.sequences),
            key: sampling.key,
            end_tokens: end_tokens.copied().collect(),
            context,
            tools: chat.tools,
        },
    }
}
