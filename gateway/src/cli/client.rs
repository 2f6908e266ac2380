//! Calls to a running server that answers JSON.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

/// For what a server answers at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Media types of what is sent.
pub(super) const JSON: &str = "application/json";
pub(super) const WASM: &str = "application/wasm";

/// A listener of a server, and how to talk to it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Its `HOST:PORT`.
    pub(super) authority: String,
    /// What stands before every path.
    pub(super) base: String,
    pub(super) key: Option<String>,
    /// What it is called, and what to look at where it cannot be reached.
    pub(super) name: &'static str,
    pub(super) hint: &'static str,
}

impl Client {
    /// Of the API at `url`, such as `http://127.0.0.1:8080/v1`.
    pub(super) fn api(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let (authority, base) = crate::bench::place(url)?;
        Ok(Client {
            authority,
            base,
            key,
            name: "API",
            hint: "is `realm serve` running there?",
        })
    }

    /// Sends a request and reads what it is answered, for as long as that takes.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let addr = &self.authority;
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(addr)).await;
        let stream = stream
            .map_err(|_| anyhow!("it does not answer"))
            .and_then(|s| Ok(s?));
        let stream = stream
            .with_context(|| format!("cannot reach the {} at {addr}: {}", self.name, self.hint))?;
        let broken = || format!("the connection to {addr} broke");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, addr)
            .header(CONTENT_TYPE, content_type);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body))?;
        let response = sender.send_request(request).await.with_context(broken)?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(broken)?;
        let body = body.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .with_context(|| format!("{addr} does not answer like a realm of this version"));
        }
        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
        match error["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => {
                bail!("{addr} answers {status}, which is not what a realm of this version says")
            }
        }
    }
}
