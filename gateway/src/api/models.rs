//! `/v1/models`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Serialize;

use super::answer::limits;
use super::body::{self, Body};
use super::error::ApiError;
use super::program;
use crate::programs::{ProgramRecord, Programs};
use crate::tenants::Caller;
use crate::workers::{Model, Models};

#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model that a program draws from.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<&'a str>,
    /// Longest context in tokens that the caller may have; null until the model was loaded once.
    max_model_len: Option<u32>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<ModelObject<'a>>,
}

fn object<'a>(model: &'a Model, caller: &Caller) -> ModelObject<'a> {
    ModelObject {
        id: &model.name,
        object: "model",
        created: model.created(),
        owned_by: "realm",
        base: None,
        max_model_len: limits(model, caller).ok().map(|limits| limits.max_context),
    }
}

fn program_object<'a>(
    record: &'a ProgramRecord,
    base: &'a Model,
    caller: &Caller,
) -> ModelObject<'a> {
    ModelObject {
        id: record.name.as_str(),
        created: u64::try_from(record.created.as_second()).unwrap_or(0),
        owned_by: match record.is_builtin() {
            true => "realm",
            false => "tenant",
        },
        base: Some(&base.name),
        ..object(base, caller)
    }
}

/// The model that a caller means by a name. To those who may not use it, it does not exist.
pub(super) fn find(models: &Models, caller: &Caller, name: &str) -> Result<Arc<Model>, ApiError> {
    let model = models.get(name);
    model
        .filter(|model| caller.tenant.settings().allows(&model.name))
        .ok_or_else(|| ApiError::model_not_found(name))
}

/// All served models that the caller may use, the default one first.
/// Then its programs that are called as models.
pub(super) async fn list(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
) -> Result<Response<Body>, ApiError> {
    let (all, settings) = (models.all(), caller.tenant.settings());
    let allowed = all.iter().filter(|model| settings.allows(&model.name));
    let programs = program::list(models, programs, caller).await?;
    let programs = programs
        .iter()
        .map(|(record, base)| program_object(record, base, caller));
    let list = List {
        object: "list",
        data: allowed
            .map(|model| object(model, caller))
            .chain(programs)
            .collect(),
    };
    Ok(body::json_response(
        StatusCode::OK,
        body::json(&list).into(),
    ))
}

/// One model, or program that is called as one.
pub(super) async fn get(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let json = match find(models, caller, id) {
        Ok(model) => body::json(&object(&model, caller)),
        Err(missing) => {
            let programs = program::list(models, programs, caller).await?;
            let mut programs = programs.iter();
            let (record, base) = programs
                .find(|(record, _)| record.name.as_str() == id)
                .ok_or(missing)?;
            body::json(&program_object(record, base, caller))
        }
    };
    Ok(body::json_response(StatusCode::OK, json.into()))
}
