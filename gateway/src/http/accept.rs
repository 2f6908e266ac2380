//! Accepting connections and speaking HTTP on them.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tower::{BoxError, Service, ServiceExt};

/// Time for a client to send its request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a client that is connected when the server is told to end to ask for something.
const LAST_CALL: Duration = Duration::from_secs(1);
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

/// A listener and the connections that come from it.
pub(super) struct Acceptor<S> {
    listener: TcpListener,
    connections: Connections<S>,
}

/// What every connection is served with.
struct Connections<S> {
    service: S,
    http: auto::Builder<TokioExecutor>,
    /// True once they are to end. Each of them holds a receiver.
    draining: watch::Sender<bool>,
}

impl<S: HttpService> Acceptor<S> {
    pub(super) fn new(listener: TcpListener, service: S) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_BUFFER);
        http.http2()
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS);
        let connections = Connections {
            service,
            http,
            draining: watch::Sender::new(false),
        };
        Acceptor {
            listener,
            connections,
        }
    }

    /// Accepts for ever.
    pub(super) async fn accept(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => self.connections.serve(stream),
                Err(error) => {
                    // Out of file descriptors, or a client that left in the queue: neither ends us.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Accepts no more, and returns once every client that had connected by now is answered and
    /// every connection has ended.
    pub(super) async fn drain(self) {
        let Acceptor {
            listener,
            connections,
        } = self;
        // The kernel connects clients ahead of us: to them the server has said that it is there.
        if let Err(error) = connections.serve_queue(listener) {
            tracing::warn!(%error, "cannot accept the last connections");
        }
        connections.draining.send_replace(true);
        connections.draining.closed().await;
    }
}

impl<S: HttpService> Connections<S> {
    /// Accepts what has connected by now, and closes the listener.
    fn serve_queue(&self, listener: TcpListener) -> io::Result<()> {
        let listener = listener.into_std()?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    self.serve(TcpStream::from_std(stream)?);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn serve(&self, stream: TcpStream) {
        // Tokens are small and must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let asked = Arc::new(Notify::new());
        let on_request = asked.clone();
        let service = self.service.clone().map_request(move |request| {
            on_request.notify_one();
            request
        });
        let connection = self
            .http
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .into_owned();
        let mut draining = self.draining.subscribe();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            // hyper closes a connection that is to end before it has seen a request on it, even if
            // one is on its way. Its own timer starts only once it is clear which HTTP is spoken.
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = asked.notified() => tokio::select! {
                    ended = &mut connection => ended,
                    () = begin(&mut draining) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                },
                () = silence(&mut draining) => {
                    return tracing::debug!("a connection without a request is closed");
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended early");
            }
        });
    }
}

/// Lasts until connections are to end.
async fn begin(draining: &mut watch::Receiver<bool>) {
    // An acceptor that is dropped ends them too.
    let _ = draining.wait_for(|&draining| draining).await;
}

/// Lasts as long as a client may be connected without asking for anything.
async fn silence(draining: &mut watch::Receiver<bool>) {
    let last_call = async {
        begin(draining).await;
        tokio::time::sleep(LAST_CALL).await;
    };
    tokio::select! {
        () = tokio::time::sleep(HEADER_TIMEOUT) => {}
        () = last_call => {}
    }
}
