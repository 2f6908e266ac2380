//! Health, readiness, metrics and the admin API, on a listener of their own.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::json;
use tower::service_fn;

use super::accept::HttpService;
use super::api::read_json;
use crate::api::{ApiError, Body};
use crate::config::ModelSource;
use crate::digest::Digest;
use crate::metrics::{cache_config, model_ready};
use crate::programs::Programs;
use crate::tenants::Ledger;
use crate::workers::{Models, State};

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The methods that only read, as in the header `Allow`.
const READ: &str = "GET, HEAD";
/// Largest request body in bytes.
const MAX_BODY: usize = 64 << 10;

/// The admin endpoints as a service.
pub(super) fn service(
    models: Models,
    programs: Programs,
    metrics: PrometheusHandle,
    ledger: Arc<Ledger>,
) -> impl HttpService {
    service_fn(move |request: Request<Incoming>| {
        let (models, programs) = (models.clone(), programs.clone());
        let (metrics, ledger) = (metrics.clone(), ledger.clone());
        async move { Ok::<_, Infallible>(route(&models, &programs, &metrics, &ledger, request).await) }
    })
}

async fn route(
    models: &Models,
    programs: &Programs,
    metrics: &PrometheusHandle,
    ledger: &Ledger,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path();
    if path.starts_with("/admin/") {
        let answer = control(models, programs, ledger, request).await;
        return answer.unwrap_or_else(ApiError::into_response);
    }
    if !is_read(request.method()) {
        return ApiError::method_not_allowed(request.method(), READ).into_response();
    }
    match path {
        // Alive: the process answers. Whether it can serve is what `/ready` says.
        "/health" => respond(StatusCode::OK, JSON, json!({"status": "ok"}).to_string()),
        "/ready" => readiness(models),
        "/metrics" => {
            metrics.run_upkeep();
            let models = models.all();
            let infos = models
                .iter()
                .filter_map(|m| Some((m.name.as_str(), m.info()?)));
            let ready = models
                .iter()
                .map(|m| (m.name.as_str(), *m.state().borrow() == State::Ready));
            let text =
                metrics.render() + &cache_config(infos) + &model_ready(ready) + &ledger.metrics();
            respond(StatusCode::OK, PROMETHEUS, text)
        }
        _ => respond(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /health, /ready, /metrics, /admin/models, /admin/usage or /admin/quarantine\n"
                .into(),
        ),
    }
}

/// What `POST /admin/models/{name}/swap` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Swap {
    /// Absent: where the model came from last time.
    source: Option<String>,
}

/// The endpoints that show and change what is served.
async fn control(
    models: &Models,
    programs: &Programs,
    ledger: &Ledger,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    check_caller(&request)?;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let shown = match path.as_str() {
        "/admin/models" => Some(json!({"models": models.status()})),
        "/admin/usage" => Some(ledger.report()),
        "/admin/quarantine" => Some(json!({"programs": programs.quarantined()})),
        _ => None,
    };
    if let Some(shown) = shown {
        if !is_read(&method) {
            return Err(ApiError::method_not_allowed(&method, READ));
        }
        return Ok(respond(StatusCode::OK, JSON, shown.to_string()));
    }
    if let Some(version) = path.strip_prefix("/admin/quarantine/") {
        return match method {
            Method::DELETE => lift(programs, version),
            _ => Err(ApiError::method_not_allowed(&method, "DELETE")),
        };
    }
    // Names may hold slashes.
    let name = path
        .strip_prefix("/admin/models/")
        .and_then(|rest| rest.strip_suffix("/swap"))
        .ok_or_else(|| ApiError::unknown_url(&method, &path))?;
    if method != Method::POST {
        return Err(ApiError::method_not_allowed(&method, "POST"));
    }
    let name = percent_decode_str(name).decode_utf8_lossy();
    let body = read_json(request, MAX_BODY).await?;
    let source = swap_source(&body)?;
    // A caller that hangs up drops this future, and with it the version that is being loaded.
    let now = models.swap(&name, source).await?;
    Ok(respond(StatusCode::OK, JSON, json!(now).to_string()))
}

/// Has a version of a program, `TENANT/SHA256`, run again.
fn lift(programs: &Programs, version: &str) -> Result<Response<Body>, ApiError> {
    let parts = version.rsplit_once('/');
    let lifted = parts.and_then(|(tenant, digest)| {
        let tenant = percent_decode_str(tenant).decode_utf8_lossy();
        programs.lift(&tenant, Digest::from_hex(digest)?)
    });
    let lifted = lifted.ok_or_else(|| ApiError::not_quarantined(version))?;
    Ok(respond(StatusCode::OK, JSON, json!(lifted).to_string()))
}

fn swap_source(body: &Bytes) -> Result<Option<ModelSource>, ApiError> {
    let swap: Swap = match body.is_empty() {
        true => Swap::default(),
        false => serde_json::from_slice(body).map_err(|e| ApiError::malformed(e.to_string()))?,
    };
    match swap.source.as_deref() {
        None => Ok(None),
        Some("") => Err(ApiError::malformed("'source' is empty: name a directory")),
        Some(source) => Ok(Some(ModelSource::from(source))),
    }
}

/// Refuses what a web page may have made a browser send. The admin API asks for no key: it trusts
/// whoever can reach the listener, which on loopback are the programs of this machine. Browsers are
/// among them, and act for pages from anywhere. Three things give a page away: on a POST to
/// another origin its browser sets `Origin`; it cannot declare JSON (see [`read_json`]) without
/// asking first, and nobody answers that; and if it had the name that it came from lead here (DNS
/// rebinding), so that this is its own origin, then that name is in `Host`.
fn check_caller<B>(request: &Request<B>) -> Result<(), ApiError> {
    if request.headers().contains_key(ORIGIN) {
        let message = "The admin API is not for web pages: requests with an 'Origin' are refused";
        return Err(ApiError::forbidden(message));
    }
    // HTTP/2 has it in the URI.
    let host = request.headers().get(HOST).map(HeaderValue::as_bytes);
    let host = host.and_then(|host| Authority::try_from(host).ok());
    match host.as_ref().or(request.uri().authority()) {
        Some(authority) if is_local_name(authority.host()) => Ok(()),
        _ => Err(ApiError::forbidden(
            "Call the admin API by an IP address or as localhost: other names may lead here without \
             its owner's will",
        )),
    }
}

fn is_local_name(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok()
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
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
            (model.name.clone(), json!(state))
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
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_give_away_are_taken() {
        let checked = |host: &str| {
            let request = Request::builder().header(HOST, host).body(());
            check_caller(&request.expect("a request")).is_ok()
        };
        for host in [
            "127.0.0.1:9090",
            "10.1.2.3",
            "[::1]:9090",
            "localhost:1",
            "LOCALHOST",
        ] {
            assert!(checked(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.",
            "",
        ] {
            assert!(!checked(host), "{host}");
        }
        let bare = Request::new(());
        assert!(check_caller(&bare).is_err());
        let over_http2 = Request::builder().uri("http://127.0.0.1:9090/admin/models");
        assert!(check_caller(&over_http2.body(()).expect("a request")).is_ok());
        let from_page = Request::builder()
            .header(HOST, "127.0.0.1")
            .header(ORIGIN, "null");
        assert!(check_caller(&from_page.body(()).expect("a request")).is_err());
    }

    #[test]
    fn a_swap_names_a_source_or_none() {
        let source = |body: &'static str| swap_source(&Bytes::from_static(body.as_bytes()));
        assert_eq!(source(""), Ok(None));
        assert_eq!(source("{}"), Ok(None));
        assert_eq!(
            source(r#"{"source":"embedded"}"#),
            Ok(Some(ModelSource::Embedded))
        );
        let dir = ModelSource::Directory("/m".into());
        assert_eq!(source(r#"{"source":"/m"}"#), Ok(Some(dir)));
        for bad in [
            "[]",
            "{",
            r#"{"source":1}"#,
            r#"{"source":""}"#,
            r#"{"sauce":"/m"}"#,
        ] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }
}
