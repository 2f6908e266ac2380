//! Response bodies.

use std::convert::Infallible;

use bytes::Bytes;
use futures_core::Stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde::Serialize;

/// The body of every response: whole JSON or a stream of server-sent events. Whatever can fail
/// is told inside it, so reading one never does.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Tells reverse proxies such as nginx to pass events on at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// JSON text of a response type. Their keys are all strings, so serialising cannot fail.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A response of JSON text.
pub(super) fn json_response(status: StatusCode, json: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(json).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response of server-sent events.
pub(super) fn event_stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = async_stream::stream! {
        let mut events = std::pin::pin!(events);
        while let Some(bytes) = std::future::poll_fn(|cx| events.as_mut().poll_next(cx)).await {
            yield Ok(Frame::data(bytes));
        }
    };
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}
