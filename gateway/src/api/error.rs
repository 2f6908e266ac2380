//! What went wrong, as OpenAI's error object and as an HTTP response.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use realm_shared::wire::Fault;
use serde::Serialize;
use serde_json::Value;

use super::body::{self, Body};
use crate::batching::sequence::FailReason;
use crate::programs::{CompileError, Kind, ProgramError};
use crate::tenants::{BadKey, Limit, OverLimit, Unauthenticated};
use crate::workers::{Refused, SwapError};

/// Longest part of a client's own words that an error repeats, in characters.
const MAX_ECHO: usize = 64;

/// Waits above this make OpenAI's Python SDK give up instead of retrying.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// It does not obey waits of nothing, but takes its own.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(1);

/// When to try again after a model's worker could not be replaced.
const RETRY_AFTER_LOSS: Duration = Duration::from_secs(30);
/// When to try again where a program had no place to run, or a program or grammar no time.
const RETRY_AFTER_PROGRAM: Duration = Duration::from_secs(1);

/// Overrides what OpenAI's SDKs make of a status code.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Where they look before `Retry-After`, which has no fractions.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// A refusal or failure that the client hears about.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    /// Tells OpenAI's SDKs not to send the request again, as they would after any 5xx.
    never_retry: bool,
}

/// OpenAI's error object. Clients require all four keys.
#[derive(Serialize)]
struct ErrorObject<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: String,
    ) -> Self {
        ApiError {
            status,
            kind,
            code,
            param: None,
            message,
            retry_after: None,
            allow: None,
            never_retry: false,
        }
    }

    fn request(code: &'static str, param: impl Into<String>, message: String) -> Self {
        ApiError {
            param: Some(param.into()),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                Some(code),
                message,
            )
        }
    }

    /// 400: the body is not JSON, or not an object.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            Some("invalid_json"),
            message.into(),
        )
    }

    /// 400: the parameter has the right type and a wrong value. `expected` says what is allowed.
    pub(super) fn invalid(param: impl Into<String>, expected: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("Invalid '{}': expected {expected}.", echo(&param));
        Self::request("invalid_value", param, message)
    }

    /// 400: the parameter has a wrong type.
    pub(super) fn wrong_type(param: impl Into<String>, expected: &str, got: &Value) -> Self {
        let param = param.into();
        let message = format!(
            "Invalid type for '{}': expected {expected}, but got {}.",
            echo(&param),
            type_name(got)
        );
        Self::request("invalid_type", param, message)
    }

    /// 400: the parameter must be given.
    pub(super) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        Self::request("missing_required_parameter", param, message)
    }

    /// 400: no such parameter.
    pub(super) fn unknown(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unrecognized request argument supplied: {}", echo(&param));
        Self::request("unknown_parameter", param, message)
    }

    /// 400: the API has the parameter, this server does not honour what it asks for.
    pub(super) fn unsupported(param: impl Into<String>, accepted: &str) -> Self {
        let param = param.into();
        let message =
            format!("Unsupported value for '{param}': this server accepts only {accepted}.");
        Self::request("unsupported_parameter", param, message)
    }

    /// 400: two parameters contradict one another.
    pub(super) fn conflict(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::request("invalid_value", param, message.into())
    }

    /// 400: prompt and answer do not fit into the model's context.
    pub(super) fn context_length(
        param: &'static str,
        max_context: u32,
        prompt: usize,
        max_tokens: u32,
    ) -> Self {
        let requested = prompt as u64 + u64::from(max_tokens);
        let message = format!(
            "This model's maximum context length is {max_context} tokens. However, you requested {requested} tokens ({prompt} in the {param}, {max_tokens} in the completion). Please reduce the length of the {param} or completion."
        );
        Self::request("context_length_exceeded", param, message)
    }

    /// 401: the request shows no key.
    fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            None,
            "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'."
                .into(),
        )
    }

    /// 401: the request shows a key that is no good.
    fn bad_key(prefix: Option<&str>, why: BadKey) -> Self {
        let shown = prefix.map_or(String::new(), |prefix| format!(": {}***", echo(prefix)));
        let message = match why {
            BadKey::Unknown => format!("Incorrect API key provided{shown}"),
            BadKey::Ended(state) => format!("The API key provided is {state}{shown}"),
        };
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            Some("invalid_api_key"),
            message,
        )
    }

    /// 403: not from this caller.
    pub fn forbidden(message: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "invalid_request_error",
            Some("forbidden"),
            message.into(),
        )
    }

    /// 404: no model of that name is served.
    pub fn model_not_found(model: &str) -> Self {
        ApiError {
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                Some("model_not_found"),
                format!("The model `{}` does not exist", echo(model)),
            )
        }
    }

    /// 404: no such version of a program is in quarantine.
    pub fn not_quarantined(version: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            Some("not_quarantined"),
            format!(
                "No version of a program `{}` (TENANT/SHA256) is in quarantine",
                echo(version)
            ),
        )
    }

    /// The same, where another parameter says it.
    pub(super) fn about(self, param: &str) -> Self {
        ApiError {
            param: Some(param.to_owned()),
            ..self
        }
    }

    /// 404: no such path.
    pub fn unknown_url(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            Some("unknown_url"),
            format!("Invalid URL ({method} {})", echo(path)),
        )
    }

    /// 405: the path exists, for the methods in `allow` (as in the header of that name).
    pub fn method_not_allowed(method: &Method, allow: &'static str) -> Self {
        ApiError {
            allow: Some(allow),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request_error",
                Some("method_not_allowed"),
                format!("Not allowed to {method} here; allowed: {allow}"),
            )
        }
    }

    /// 408: the body did not arrive in time. Clients may retry.
    pub fn body_timeout(limit: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            Some("request_timeout"),
            format!(
                "The request body did not arrive within {} s",
                limit.as_secs()
            ),
        )
    }

    /// 413: the body is longer than `limit` bytes.
    pub fn payload_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            Some("payload_too_large"),
            format!("The request body is larger than {limit} bytes"),
        )
    }

    /// 415: the body is not declared to be of the `expected` media type.
    pub fn unsupported_media_type(expected: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            Some("unsupported_media_type"),
            format!(
                "The request body must be {expected}: set the header 'Content-Type: {expected}'"
            ),
        )
    }

    /// 429: the server has as much work as it can hold.
    pub fn queue_full(retry_after: Duration) -> Self {
        ApiError {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("queue_full"),
                "The server's queue is full; retry after the time in the Retry-After header".into(),
            )
        }
    }

    /// 503: the model cannot answer now and may later.
    pub fn unavailable(retry_after: Duration, reason: &str) -> Self {
        ApiError {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some("model_not_ready"),
                format!("The model is not ready: {reason}"),
            )
        }
    }

    /// 500: the server's own fault, which the same request would meet again.
    pub fn internal(message: impl Into<String>) -> Self {
        ApiError {
            never_retry: true,
            ..Self::server(None, message.into())
        }
    }

    fn server(code: Option<&'static str>, message: String) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            code,
            message,
        )
    }

    /// An answer cannot have the form that it is to have.
    fn grammar(fault: Fault, message: &str) -> Self {
        let (status, kind) = match fault {
            Fault::Error | Fault::Memory | Fault::Plan => {
                (StatusCode::BAD_REQUEST, "invalid_request_error")
            }
            Fault::Late => (StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        let code = match fault {
            Fault::Error => "invalid_grammar",
            Fault::Memory => "grammar_too_complex",
            Fault::Plan => "grammar_dead_end",
            Fault::Late => "grammar_late",
            _ => "grammar_unusable",
        };
        let message = format!("The answer cannot be kept to its form: {message}");
        let passes = fault == Fault::Late;
        ApiError {
            retry_after: passes.then_some(RETRY_AFTER_PROGRAM),
            never_retry: !passes && status.is_server_error(),
            ..Self::new(status, kind, Some(code), message)
        }
    }

    /// The HTTP status that it has.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What programs tell it by.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// OpenAI's error object as JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        body::json(&ErrorObject {
            error: ErrorFields {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        })
    }

    /// The response that says so.
    pub fn into_response(self) -> Response<Body> {
        let mut response = body::json_response(self.status, Bytes::from(self.to_json()));
        let headers = response.headers_mut();
        if self.never_retry {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(wait) = self.retry_after {
            let wait = wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER);
            let milliseconds = wait.as_micros().div_ceil(1000) as u64;
            headers.insert(RETRY_AFTER, milliseconds.div_ceil(1000).into());
            headers.insert(RETRY_AFTER_MS, milliseconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotReady {
                retry_after,
                reason,
            } => Self::unavailable(retry_after, &reason),
            Refused::TooMany { limit } => Self::invalid(
                "n",
                format_args!(
                    "at most {limit} choices over all prompts, as many as this server takes at once"
                ),
            ),
            Refused::QueueFull { retry_after } => Self::queue_full(retry_after),
        }
    }
}

impl From<Unauthenticated> for ApiError {
    fn from(refused: Unauthenticated) -> Self {
        match refused {
            Unauthenticated::Missing => Self::no_key(),
            Unauthenticated::Bad { prefix, why } => Self::bad_key(prefix.as_deref(), why),
        }
    }
}

impl From<OverLimit> for ApiError {
    fn from(over: OverLimit) -> Self {
        let (kind, code, wanted) = match over.limit {
            Limit::Requests | Limit::Concurrency | Limit::Queue => {
                ("requests", "rate_limit_exceeded", None)
            }
            Limit::Tokens(wanted) => ("tokens", "rate_limit_exceeded", Some(wanted)),
            // What others only hold may be given back in a moment.
            Limit::DailyTokens(wanted) if over.retry_after.is_some() => {
                ("tokens", "rate_limit_exceeded", Some(wanted))
            }
            Limit::DailyTokens(wanted) => {
                ("insufficient_quota", "insufficient_quota", Some(wanted))
            }
        };
        let asked = wanted.map_or(String::new(), |wanted| {
            format!(" This request needs {wanted}, its prompt and what it may generate.")
        });
        let then = match over.retry_after {
            _ if code == "insufficient_quota" => String::new(),
            Some(wait) => format!(" Please try again in {:.1} s.", wait.as_secs_f64().max(0.1)),
            None => " It can never be served; ask for less.".to_owned(),
        };
        ApiError {
            retry_after: over.retry_after,
            never_retry: over.retry_after.is_none(),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                kind,
                Some(code),
                format!(
                    "You have reached your limit of {} {}.{asked}{then}",
                    over.most, over.limit
                ),
            )
        }
    }
}

impl From<ProgramError> for ApiError {
    fn from(error: ProgramError) -> Self {
        let (status, code) = match &error {
            ProgramError::Off => (StatusCode::NOT_FOUND, "programs_disabled"),
            ProgramError::NotFound(_) => (StatusCode::NOT_FOUND, "program_not_found"),
            ProgramError::Quarantined(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "program_quarantined")
            }
            ProgramError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "program_too_large"),
            ProgramError::TooMany(_) => (StatusCode::BAD_REQUEST, "too_many_programs"),
            ProgramError::Compile(CompileError::Invalid(_)) => {
                (StatusCode::BAD_REQUEST, "invalid_program")
            }
            ProgramError::Compile(CompileError::Limit(_)) => {
                (StatusCode::BAD_REQUEST, "program_compile_limit")
            }
            ProgramError::Lost(_)
            | ProgramError::Compile(CompileError::Broken { .. })
            | ProgramError::Store(_)
            | ProgramError::Task => {
                tracing::error!(%error, "a program cannot be stored or loaded");
                return Self::server(
                    Some("program_unavailable"),
                    "The program cannot be stored or loaded by a fault of the server, whose log \
                     says what is wrong"
                        .into(),
                );
            }
        };
        let message = match error {
            ProgramError::NotFound(name) => {
                ProgramError::NotFound(echo(&name).to_owned()).to_string()
            }
            error => error.to_string(),
        };
        Self::new(status, "invalid_request_error", Some(code), message)
    }
}

impl From<SwapError> for ApiError {
    fn from(error: SwapError) -> Self {
        let (status, code) = match &error {
            SwapError::Unknown(model) => return Self::model_not_found(model),
            SwapError::Busy(_) => (StatusCode::CONFLICT, "swap_under_way"),
            SwapError::Loading(_) => (StatusCode::CONFLICT, "model_not_ready"),
            SwapError::Load(_) => (StatusCode::UNPROCESSABLE_ENTITY, "model_not_loaded"),
        };
        let message = error.to_string();
        Self::new(status, "invalid_request_error", Some(code), message)
    }
}

/// The status and codes of a failure of a tenant's code: that of a processor, and of a program.
fn program_failure(fault: Fault) -> (StatusCode, [&'static str; 2]) {
    // What the code itself did would happen again; all else may pass.
    let own = StatusCode::UNPROCESSABLE_ENTITY;
    match fault {
        Fault::Error => (own, ["processor_error", "program_error"]),
        Fault::Trap => (own, ["processor_trap", "program_trap"]),
        Fault::Time => (own, ["processor_time_limit", "program_time_limit"]),
        Fault::Memory => (own, ["processor_memory_limit", "program_memory_limit"]),
        Fault::Plan => (own, ["processor_invalid_plan", "program_invalid_call"]),
        Fault::Output => (own, ["processor_output_limit", "program_output_limit"]),
        Fault::Tensors => (own, ["processor_tensor_limit", "program_tensor_limit"]),
        Fault::Stack => (own, ["processor_stack_limit", "program_stack_limit"]),
        Fault::Handles => (own, ["processor_handle_limit", "program_handle_limit"]),
        Fault::HostCall => (
            own,
            ["processor_host_call_limit", "program_host_call_limit"],
        ),
        Fault::Wall => (
            own,
            ["processor_wall_time_limit", "program_wall_time_limit"],
        ),
        Fault::Tokens => (
            StatusCode::TOO_MANY_REQUESTS,
            ["processor_token_limit", "program_token_limit"],
        ),
        Fault::Instances => (
            StatusCode::TOO_MANY_REQUESTS,
            ["processor_instances_limit", "program_instances_limit"],
        ),
        Fault::Unusable => (
            StatusCode::INTERNAL_SERVER_ERROR,
            ["processor_unusable", "program_unusable"],
        ),
        Fault::Late => (
            StatusCode::SERVICE_UNAVAILABLE,
            ["processor_late", "program_late"],
        ),
    }
}

impl From<FailReason> for ApiError {
    fn from(reason: FailReason) -> Self {
        match reason {
            FailReason::Program {
                kind,
                fault,
                message,
            } => {
                let (status, codes) = program_failure(fault);
                let (class, code) = match kind {
                    Kind::Processor => ("processor_error", codes[0]),
                    Kind::Program => ("program_error", codes[1]),
                };
                let passes = matches!(fault, Fault::Instances | Fault::Late | Fault::Tokens);
                ApiError {
                    retry_after: passes.then_some(RETRY_AFTER_PROGRAM),
                    never_retry: !passes,
                    ..Self::new(
                        status,
                        class,
                        Some(code),
                        format!("The {kind} of this request failed: {message}"),
                    )
                }
            }
            FailReason::Grammar { fault, message } => Self::grammar(fault, &message),
            FailReason::WorkerCrashed => ApiError {
                never_retry: true,
                ..Self::server(
                    Some("worker_crashed"),
                    "The model's worker died twice while it worked on this request, which will not be retried".into(),
                )
            },
            FailReason::Quarantined { kind } => ApiError {
                never_retry: true,
                ..Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid_request_error",
                    Some("program_quarantined"),
                    format!(
                        "This version of the {kind} of this request crashed the worker again and again, and is not \
                         run any more: push another version of it"
                    ),
                )
            },
            FailReason::NotANumber => ApiError {
                never_retry: true,
                ..Self::server(
                    Some("not_a_number"),
                    "The model produced no number for this input: its weights are broken, or what it computes overflows the data type it runs in; another --dtype, such as bf16 or f32, may help".into(),
                )
            },
            FailReason::WorkerGone => ApiError {
                retry_after: Some(RETRY_AFTER_LOSS),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "server_error",
                    Some("worker_gone"),
                    "The model's worker ended and could not be replaced".into(),
                )
            },
            FailReason::TooLong => Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                Some("context_length_exceeded"),
                "The request needs more memory for its context than the server has in all; shorten the prompt or lower max_tokens".into(),
            ),
        }
    }
}

/// A client's own words, cut to a length that is fit for a message.
fn echo(words: &str) -> String {
    match words.char_indices().nth(MAX_ECHO) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.to_owned(),
    }
}

/// A JSON type in words.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(error: &ApiError) -> Value {
        serde_json::from_slice(&error.to_json()).expect("is JSON")
    }

    #[test]
    fn what_would_fail_again_is_not_sent_again() {
        for reason in [FailReason::WorkerCrashed, FailReason::NotANumber] {
            let response = ApiError::from(reason).into_response();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(response.headers()["x-should-retry"], "false");
        }
        let response = ApiError::internal("oops").into_response();
        assert_eq!(response.headers()["x-should-retry"], "false");
        let lost = ApiError::from(ProgramError::Task).into_response();
        assert_eq!(lost.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!lost.headers().contains_key("x-should-retry"));
        let response = ApiError::from(FailReason::WorkerGone).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "30");
        assert!(!response.headers().contains_key("x-should-retry"));
    }

    #[test]
    fn a_form_that_is_none_is_the_requests_fault() {
        let told = |fault| {
            let message = "oh".into();
            let error = ApiError::from(FailReason::Grammar { fault, message }).about("x");
            assert!(error.to_string().ends_with(": oh"));
            let (json, response) = (parsed(&error), error.into_response());
            assert_eq!(json["error"]["param"], "x");
            let again = response.headers().get("x-should-retry");
            let code = json["error"]["code"].as_str().expect("a code").to_owned();
            (response.status().as_u16(), code, again.is_none())
        };
        for (fault, expected) in [
            (Fault::Error, (400, "invalid_grammar", true)),
            (Fault::Memory, (400, "grammar_too_complex", true)),
            (Fault::Plan, (400, "grammar_dead_end", true)),
            (Fault::Late, (503, "grammar_late", true)),
            (Fault::Unusable, (500, "grammar_unusable", false)),
        ] {
            let (status, code, again) = told(fault);
            assert_eq!((status, code.as_str(), again), expected);
        }
    }

    #[test]
    fn all_four_keys_are_there() {
        assert_eq!(
            parsed(&ApiError::internal("oops")),
            json!({"error": {"message": "oops", "type": "server_error", "param": null, "code": null}})
        );
        assert_eq!(
            parsed(&ApiError::model_not_found("x")),
            json!({"error": {"message": "The model `x` does not exist",
                   "type": "invalid_request_error", "param": "model", "code": "model_not_found"}})
        );
    }

    #[test]
    fn context_length_is_told_in_numbers() {
        let error = ApiError::context_length("messages", 4096, 4000, 200);
        assert_eq!(
            error.to_string(),
            "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens (4000 in the messages, 200 in the completion). Please reduce the length of the messages or completion."
        );
    }

    #[test]
    fn retry_after_is_whole_seconds_that_sdks_obey() {
        for (wait, header, precisely) in [
            (0, "1", "1"),
            (1, "1", "1"),
            (1001, "2", "1001"),
            (9_000_000, "120", "120000"),
        ] {
            let response = ApiError::queue_full(Duration::from_millis(wait)).into_response();
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()[RETRY_AFTER], header);
            assert_eq!(response.headers()[RETRY_AFTER_MS], precisely);
        }
    }

    #[test]
    fn allowed_methods_are_named() {
        let response = ApiError::method_not_allowed(&Method::PUT, "GET, HEAD").into_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()[ALLOW], "GET, HEAD");
    }

    #[test]
    fn long_words_are_not_repeated_whole() {
        let error = ApiError::model_not_found(&"é".repeat(1000));
        assert!(error.to_string().len() < 200);
    }
}
