//! `processor`: the program that steers how a request's tokens are drawn.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::batching::Instance;
use crate::programs::{Kind, Programs};
use crate::tenants::Caller;

/// Most bytes of its arguments, as JSON.
const MAX_ARGS: usize = 64 << 10;

/// The program that a request names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Processor {
    name: String,
    args: Arc<str>,
}

impl Processor {
    /// Takes it out of a request, if it names one.
    pub(super) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let Some(mut fields) = fields.object("processor")? else {
            return Ok(None);
        };
        let name = fields.string("name")?;
        let name = name.ok_or_else(|| ApiError::missing("processor.name"))?;
        let args = args(&mut fields)?.into();
        fields.finish()?;
        Ok(Some(Processor { name, args }))
    }
}

/// Takes the arguments of a program out of what a request says of it, as JSON.
pub(super) fn args(fields: &mut Fields) -> Result<String, ApiError> {
    let args = fields.take("args").unwrap_or(Value::Null).to_string();
    match args.len() {
        0..=MAX_ARGS => Ok(args),
        long => Err(ApiError::invalid(
            fields.path("args"),
            format!("at most {MAX_ARGS} bytes of JSON, but got {long}"),
        )),
    }
}

/// What steers a request's sequences: the program that it names, or else its tenant's usual one.
pub(super) async fn steering(
    programs: &Programs,
    caller: &Caller,
    model: &str,
    named: Option<&Processor>,
) -> Result<Option<Instance>, ApiError> {
    let settings = caller.tenant.settings();
    let (name, args) = match (named, &settings.processor) {
        (Some(named), _) => (named.name.as_str(), named.args.clone()),
        (None, Some(usual)) => (usual.as_str(), "null".into()),
        (None, None) => return Ok(None),
    };
    let program = programs.find(&caller.tenant.name, name).await?;
    if program.kind != Kind::Processor {
        return Err(ApiError::conflict(
            "processor",
            format!("`{name}` is a program, which answers by itself: name it as 'model'."),
        ));
    }
    if let Some(base) = program.base.as_deref().filter(|base| *base != model) {
        return Err(ApiError::conflict(
            "processor",
            format!("The program `{name}` is made for the model `{base}`, not for `{model}`."),
        ));
    }
    Ok(Some(Instance {
        program,
        args,
        allotment: settings.allotment(),
    }))
}
