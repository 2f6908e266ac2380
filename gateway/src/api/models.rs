//! `/v1/models`.

use http::{Response, StatusCode};
use serde::Serialize;

use super::body::{self, Body};
use super::error::ApiError;
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

/// All served models, the default one first.
pub(super) fn list(models: &Models) -> Response<Body> {
    let models = models.all();
    let list = List {
        object: "list",
        data: models.iter().map(|model| object(model)).collect(),
    };
    body::json_response(StatusCode::OK, body::json(&list).into())
}

/// One model.
pub(super) fn get(models: &Models, id: &str) -> Result<Response<Body>, ApiError> {
    let model = models
        .get(id)
        .ok_or_else(|| ApiError::model_not_found(id))?;
    Ok(body::json_response(
        StatusCode::OK,
        body::json(&object(&model)).into(),
    ))
}
