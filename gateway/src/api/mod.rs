//! The OpenAI-compatible API: JSON in, JSON or server-sent events out.
//!
//! A request goes through [`chat`] or [`completions`]: `fields` reads its JSON and names what is
//! wrong with it, `text` cuts its prompt into tokens, the model's workers generate, each `choice`
//! turns what they say into text that may be sent, and `run` writes that out.

mod answer;
mod body;
mod calls;
mod chat;
mod choice;
mod completions;
mod error;
mod fields;
mod form;
mod logprobs;
mod messages;
mod models;
mod params;
mod priority;
mod processor;
mod program;
mod programs;
mod prompts;
pub(crate) mod random;
mod run;
mod template;
#[cfg(test)]
mod testing;
mod tools;
mod unsupported;

use bytes::Bytes;
use http::Response;

pub use answer::Taken;
pub use body::Body;
pub use error::ApiError;
pub(crate) use program::{Chat, task};
pub use programs::{ProgramList, ProgramObject};

use crate::programs::Programs;
use crate::tenants::Caller;
use crate::workers::Models;

/// `POST /v1/chat/completions`.
pub async fn chat_completions(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    body: Bytes,
) -> Response<Body> {
    let response = chat::respond(models, programs, caller, &body).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `POST /v1/completions`.
pub async fn completions(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    body: Bytes,
) -> Response<Body> {
    let response = completions::respond(models, programs, caller, &body).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `GET /v1/models`.
pub async fn list_models(models: &Models, programs: &Programs, caller: &Caller) -> Response<Body> {
    let response = models::list(models, programs, caller).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `GET /v1/models/{id}`. Names may hold slashes.
pub async fn get_model(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    id: &str,
) -> Response<Body> {
    let response = models::get(models, programs, caller, id).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `POST /v1/programs`, with a component as `body`.
pub async fn push_program(
    store: &Programs,
    models: &Models,
    caller: &Caller,
    query: &str,
    body: Bytes,
) -> Response<Body> {
    let response = programs::push(store, models, caller, query, body).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `GET /v1/programs`.
pub async fn list_programs(store: &Programs, caller: &Caller) -> Response<Body> {
    let response = programs::list(store, caller).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `GET /v1/programs/{name}`.
pub async fn get_program(store: &Programs, caller: &Caller, name: &str) -> Response<Body> {
    let response = programs::get(store, caller, name).await;
    response.unwrap_or_else(ApiError::into_response)
}

/// `DELETE /v1/programs/{name}`.
pub async fn delete_program(store: &Programs, caller: &Caller, name: &str) -> Response<Body> {
    let response = programs::delete(store, caller, name).await;
    response.unwrap_or_else(ApiError::into_response)
}
