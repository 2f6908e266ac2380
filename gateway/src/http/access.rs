//! The layer that tells whose a request is, turns away who has no key or too many requests, and
//! tells everybody else what is left.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::{Layer, Service};

use super::api::linger;
use crate::api::{ApiError, Body, Taken};
use crate::metrics::http_response;
use crate::tenants::{Access, Left, Permit, Tenant};

/// Puts the [`Caller`](crate::tenants::Caller) into the extensions of every request that it lets
/// through. The bodies of others are not read.
#[derive(Debug, Clone)]
pub(super) struct AccessLayer(Arc<Access>);

impl AccessLayer {
    pub(super) fn new(access: Arc<Access>) -> Self {
        AccessLayer(access)
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        let access = self.0.clone();
        Guarded { inner, access }
    }
}

/// See [`AccessLayer`].
#[derive(Debug, Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Incoming>> for Guarded<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let caller = match self.access.caller(request.headers()) {
            Ok(caller) => caller,
            Err(refused) => return refuse(request, "unauthenticated", refused.into()),
        };
        let span = tracing::Span::current();
        span.record("tenant", &caller.tenant.name);
        if let Some(key) = &caller.key {
            span.record("key", &key.prefix);
        }
        let tenant = caller.tenant.clone();
        // Only what computes is limited.
        let permit = (request.method() == Method::POST).then(|| tenant.start());
        let (permit, answer) = match permit.transpose() {
            Ok(permit) => {
                request.extensions_mut().insert(caller);
                let answer: Answer = Box::pin(self.inner.call(request));
                (permit, answer)
            }
            Err(over) => (None, refuse(request, "limited", over.into())),
        };
        let ledger = self.access.ledger().clone();
        Box::pin(async move {
            let mut response = answer.await?;
            // What a model has taken is in the ledger already.
            let taken = response.extensions().get::<Taken>().is_some();
            match response.status() {
                _ if taken => {}
                StatusCode::TOO_MANY_REQUESTS => ledger.limited(&tenant.name),
                status if status.is_client_error() || status.is_server_error() => {
                    ledger.refused(&tenant.name);
                }
                _ => {}
            }
            tell_left(&tenant, response.headers_mut());
            Ok(match permit {
                Some(permit) => response.map(|inner| Held { inner, permit }.boxed_unsync()),
                None => response,
            })
        })
    }
}

/// The body of an answer to a request that counts as running until it is sent, or given up.
struct Held {
    inner: Body,
    #[expect(dead_code, reason = "its end is what it is for")]
    permit: Permit,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn refuse(request: Request<Incoming>, route: &'static str, why: ApiError) -> Answer {
    tracing::info!(refused = %why);
    linger(request.into_body());
    http_response(route, why.status().as_u16());
    Box::pin(std::future::ready(Ok(why.into_response())))
}

/// Writes what is left of the limits by the minute into the headers that OpenAI's have.
fn tell_left(tenant: &Tenant, headers: &mut HeaderMap) {
    let mut tell = |left: Option<Left>, [limit, remaining, reset]: [HeaderName; 3]| {
        let Some(left) = left else {
            return;
        };
        headers.insert(limit, left.limit.into());
        headers.insert(remaining, left.remaining.into());
        if let Ok(value) = HeaderValue::try_from(span(left.reset)) {
            headers.insert(reset, value);
        }
    };
    let (requests, tokens) = tenant.left();
    tell(
        requests,
        [
            HeaderName::from_static("x-ratelimit-limit-requests"),
            HeaderName::from_static("x-ratelimit-remaining-requests"),
            HeaderName::from_static("x-ratelimit-reset-requests"),
        ],
    );
    tell(
        tokens,
        [
            HeaderName::from_static("x-ratelimit-limit-tokens"),
            HeaderName::from_static("x-ratelimit-remaining-tokens"),
            HeaderName::from_static("x-ratelimit-reset-tokens"),
        ],
    );
}

/// A time as OpenAI writes it: `120ms`, `7.66s`, `6m0s`.
fn span(time: Duration) -> String {
    let milliseconds = time.as_millis();
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = rest as f64 / 1e3;
    match minutes {
        0 => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_does() {
        let written = |milliseconds| span(Duration::from_millis(milliseconds));
        assert_eq!(written(0), "0ms");
        assert_eq!(written(120), "120ms");
        assert_eq!(written(7660), "7.66s");
        assert_eq!(written(360_000), "6m0s");
        assert_eq!(written(90_500), "1m30.5s");
    }
}
