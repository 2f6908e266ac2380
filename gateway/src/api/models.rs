//! `/v1/models`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Serialize;

use super::body::{self, Body};
use super::error::ApiError;
use crate::tenants::Caller;
use crate::workers::{Model, Models};

#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest context in tokens; null until the model was loaded once.
    max_model_len: Option<u32>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<ModelObject<'a>>,
}

fn object(model: &Model) -> ModelObject<'_> {
    ModelObject {
        id: &model.name,
        object: "model",
        created: model.created(),
        owned_by: "realm",
        max_model_len: model.limits().map(|limits| limits.max_context),
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
pub(super) fn list(models: &Models, caller: &Caller) -> Response<Body> {
    let (models, settings) = (models.all(), caller.tenant.settings());
    let allowed = models.iter().filter(|model| settings.allows(&model.name));
    let list = List {
        object: "list",
        data: allowed.map(|model| object(model)).collect(),
    };
    body::json_response(StatusCode::OK, body::json(&list).into())
}

/// One model.
pub(super) fn get(models: &Models, caller: &Caller, id: &str) -> Result<Response<Body>, ApiError> {
    let model = find(models, caller, id)?;
    Ok(body::json_response(
        StatusCode::OK,
        body::json(&object(&model)).into(),
    ))
}
