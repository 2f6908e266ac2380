//! Accepting connections and speaking HTTP on them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{BoxError, Service, ServiceExt};

/// Time for a client to send its request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence on an HTTP/2 connection after which its client is asked whether it is there, and time
/// for it to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Bytes that a connection buffers: what a client reads too slowly, or a request's head.
const MAX_BUFFER: usize = 64 << 10;
/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 256;

/// What can be served on a listener.
pub(super) trait HttpService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
    /// Of its responses.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// Accepts for ever. Every connection is watched by `graceful`.
pub(super) async fn accept<S: HttpService>(
    listener: TcpListener,
    service: S,
    graceful: &GracefulShutdown,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that left in the queue: neither ends us.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        // Tokens are small and must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let asked = Arc::new(AtomicBool::new(false));
        let on_request = asked.clone();
        let service = service.clone().map_request(move |request| {
            on_request.store(true, Ordering::Relaxed);
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            // hyper's own timer starts only once it is clear which HTTP is spoken.
            let silent = tokio::time::sleep(HEADER_TIMEOUT);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = silent => match asked.load(Ordering::Relaxed) {
                    true => connection.await,
                    false => return tracing::debug!("a connection without a request is closed"),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended early");
            }
        });
    }
}
