//! Health, readiness and metrics, on a listener of their own.

use std::convert::Infallible;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tower::service_fn;

use super::accept::HttpService;
use crate::api::Body;
use crate::workers::{Models, State};

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The admin endpoints as a service.
pub(super) fn service(models: Models, metrics: PrometheusHandle) -> impl HttpService {
    service_fn(move |request: Request<Incoming>| {
        let response = route(&models, &metrics, &request);
        async move { Ok::<_, Infallible>(response) }
    })
}

fn route(
    models: &Models,
    metrics: &PrometheusHandle,
    request: &Request<Incoming>,
) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = respond(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET is served here\n".into(),
        );
        response
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        // Alive: the process answers. Whether it can serve is what `/ready` says.
        "/health" => respond(StatusCode::OK, JSON, json!({"status": "ok"}).to_string()),
        "/ready" => readiness(models),
        "/metrics" => {
            metrics.run_upkeep();
            respond(StatusCode::OK, PROMETHEUS, metrics.render())
        }
        _ => respond(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /health, /ready or /metrics\n".into(),
        ),
    }
}

/// Ready when each model has a worker that has produced a token.
fn readiness(models: &Models) -> Response<Body> {
    let mut all = true;
    let states: serde_json::Map<_, _> = models
        .all()
        .iter()
        .map(|model| {
            let state = model.state().borrow().clone();
            all &= state == State::Ready;
            let state = match state {
                State::Ready => json!({"state": "ready"}),
                State::Loading { fraction } => json!({"state": "loading", "fraction": fraction}),
                State::Restarting { reason } => json!({"state": "restarting", "reason": reason}),
                State::Failed { reason } => json!({"state": "failed", "reason": reason}),
            };
            (model.name.clone(), state)
        })
        .collect();
    let status = if all {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    respond(
        status,
        JSON,
        json!({"ready": all, "models": states}).to_string(),
    )
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
