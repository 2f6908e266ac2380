//! The API's tower stack and its routes.

use std::any::Any;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tower::{ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::field::Empty;

use super::accept::HttpService;
use super::access::AccessLayer;
use crate::api::{self, ApiError, Body};
use crate::metrics::http_response;
use crate::programs::{ProgramError, Programs};
use crate::tenants::{Access, Caller};
use crate::workers::Models;

/// Time for a client to send its request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a client to send the rest of a body that is refused.
const LINGER: Duration = Duration::from_secs(10);
/// Longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 128;
const JSON: &str = "application/json";
const WASM: &str = "application/wasm";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The API as a service. Layers from the outermost in:
///
/// 1. request id: a client's own, if it is sane, or a new one; on the answer too
/// 2. trace: one span a request, which every log line inside it carries
/// 3. panics become a 500, so that a fault in one request ends that request alone
/// 4. whose it is, by its API key, and whether that tenant may ask for more
/// 5. routes
pub(super) fn service(
    models: Models,
    programs: Programs,
    access: Arc<Access>,
    max_body: usize,
) -> impl HttpService {
    let span = |request: &Request<Incoming>| {
        let id = request
            .headers()
            .get(REQUEST_ID)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        tracing::info_span!(
            "request",
            id,
            method = %request.method(),
            path = request.uri().path(),
            tenant = Empty,
            key = Empty,
        )
    };
    ServiceBuilder::new()
        .map_request(drop_bad_request_id)
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(AccessLayer::new(access))
        .service(service_fn(move |request| {
            let (models, programs) = (models.clone(), programs.clone());
            async move { Ok::<_, Infallible>(route(&models, &programs, max_body, request).await) }
        }))
}

async fn route(
    models: &Models,
    programs: &Programs,
    max_body: usize,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let Some(caller) = request.extensions_mut().remove::<Caller>() else {
        return ApiError::internal("nobody asked whose this request is").into_response();
    };
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let (route, response) = match path.strip_prefix("/v1/").unwrap_or("") {
        "models" if method == Method::GET => {
            let response = api::list_models(models, programs, &caller).await;
            ("/v1/models", response)
        }
        "models" => ("/v1/models", not_allowed(&method, "GET")),
        "chat/completions" if method == Method::POST => {
            let response = match read_json(request, max_body).await {
                Ok(body) => api::chat_completions(models, programs, &caller, body).await,
                Err(error) => error.into_response(),
            };
            ("/v1/chat/completions", response)
        }
        "chat/completions" => ("/v1/chat/completions", not_allowed(&method, "POST")),
        "completions" if method == Method::POST => {
            let response = match read_json(request, max_body).await {
                Ok(body) => api::completions(models, programs, &caller, body).await,
                Err(error) => error.into_response(),
            };
            ("/v1/completions", response)
        }
        "completions" => ("/v1/completions", not_allowed(&method, "POST")),
        "programs" if method == Method::GET => {
            ("/v1/programs", api::list_programs(programs, &caller).await)
        }
        "programs" if method == Method::POST => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let response = match read_component(programs, request).await {
                Ok(body) => api::push_program(programs, models, &caller, &query, body).await,
                Err(error) => error.into_response(),
            };
            ("/v1/programs", response)
        }
        "programs" => ("/v1/programs", not_allowed(&method, "GET, POST")),
        rest => match rest.split_once('/') {
            Some(("models", id)) if method == Method::GET => {
                let response = api::get_model(models, programs, &caller, &name(id)).await;
                ("/v1/models/{id}", response)
            }
            Some(("models", _)) => ("/v1/models/{id}", not_allowed(&method, "GET")),
            Some(("programs", encoded)) => {
                let name = name(encoded);
                let response = match method {
                    Method::GET => api::get_program(programs, &caller, &name).await,
                    Method::DELETE => api::delete_program(programs, &caller, &name).await,
                    _ => not_allowed(&method, "GET, DELETE"),
                };
                ("/v1/programs/{name}", response)
            }
            _ => (
                "other",
                ApiError::unknown_url(&method, &path).into_response(),
            ),
        },
    };
    http_response(route, response.status().as_u16());
    response
}

/// A name as the end of a path has it. Clients write a slash in one as it is, or encoded. What is no text has
/// characters in it that no name has, so that nothing is found.
fn name(encoded: &str) -> Cow<'_, str> {
    percent_decode_str(encoded).decode_utf8_lossy()
}

fn not_allowed(method: &Method, allowed: &'static str) -> Response<Body> {
    ApiError::method_not_allowed(method, allowed).into_response()
}

/// Only bodies declared to be JSON are read: web pages of other origins cannot declare that
/// without asking first, so they cannot use a server that listens on loopback without keys.
pub(super) async fn read_json(
    request: Request<Incoming>,
    max_body: usize,
) -> Result<Bytes, ApiError> {
    read_body(request, JSON, max_body, ApiError::payload_too_large).await
}

/// The same of components, which have a limit of their own.
async fn read_component(
    programs: &Programs,
    request: Request<Incoming>,
) -> Result<Bytes, ApiError> {
    match programs.most_bytes() {
        Ok(most) => {
            let too_large = |most| ProgramError::TooLarge(most).into();
            read_body(request, WASM, most, too_large).await
        }
        Err(error) => {
            linger(request.into_body());
            Err(error.into())
        }
    }
}

async fn read_body(
    request: Request<Incoming>,
    media_type: &'static str,
    max_body: usize,
    too_large: fn(usize) -> ApiError,
) -> Result<Bytes, ApiError> {
    if !is_of(media_type, request.headers()) {
        linger(request.into_body());
        return Err(ApiError::unsupported_media_type(media_type));
    }
    let mut body = request.into_body();
    // A length that is announced is refused before the body, which may never come.
    if body.size_hint().lower() > max_body as u64 {
        linger(body);
        return Err(too_large(max_body));
    }
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue; // trailers
            };
            if bytes.len() + data.len() > max_body {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
        Ok::<_, hyper::Error>(Some(bytes.freeze()))
    };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            linger(body);
            Err(too_large(max_body))
        }
        Ok(Err(error)) => Err(ApiError::malformed(format!(
            "The request body could not be read: {error}"
        ))),
        Err(_) => Err(ApiError::body_timeout(BODY_TIMEOUT)),
    }
}

/// Swallows what still comes of a refused body, for a while. A client reads the refusal only
/// once it has sent everything; closing on it would look like a broken connection.
pub(super) fn linger(mut body: Incoming) {
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        while let Some(Ok(_)) = body.frame().await {}
    }));
}

fn is_of(media_type: &str, headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let declared = content_type.and_then(|t| t.split(';').next());
    declared.is_some_and(|t| t.trim().eq_ignore_ascii_case(media_type))
}

/// A client's request id goes into every log line: it must be short and printable.
fn drop_bad_request_id<B>(mut request: Request<B>) -> Request<B> {
    let sane = |v: &HeaderValue| {
        v.len() <= MAX_REQUEST_ID && v.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if !request.headers().get(REQUEST_ID).is_some_and(sane) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

fn panic_response(panic: Box<dyn Any + Send>) -> Response<Body> {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(what, "a request handler panicked");
    let error =
        ApiError::internal("This request met a fault of the server, which goes on serving others");
    // What it asked for went with it.
    http_response("other", error.status().as_u16());
    error.into_response()
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn names_in_paths_may_be_encoded() {
        for (encoded, expected) in [
            ("org/name", "org/name"),
            ("org%2Fname", "org/name"),
            ("a%20b+c", "a b+c"),
            ("%C3%A9", "é"),
            ("100%", "100%"),
            ("%FF", "\u{FFFD}"),
        ] {
            assert_eq!(name(encoded), expected);
        }
    }

    #[test]
    fn whoever_watches_responses_sees_panics() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let response = metrics::with_local_recorder(&recorder, || panic_response(Box::new("why")));
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-should-retry"], "false");
        let line = r#"realm_http_requests_total{route="other",status="500"} 1"#;
        assert!(handle.render().lines().any(|l| l == line));
    }
}
