//! A client of a running server's admin API.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::workers::ModelStatus;

/// For what a server on the same machine answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// The admin listener of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admin(pub(super) SocketAddr);

impl Admin {
    /// What is served.
    pub(super) async fn models(self) -> anyhow::Result<Vec<ModelStatus>> {
        #[derive(Deserialize)]
        struct All {
            models: Vec<ModelStatus>,
        }
        let answer = self.call::<All>(Method::GET, "/admin/models", Bytes::new());
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let all = answer.map_err(|_| anyhow!("{} does not answer", self.0))?;
        Ok(all?.models)
    }

    /// Swaps a model, which may take minutes. Dropping the future ends the swap.
    pub(super) async fn swap(
        self,
        name: &str,
        source: Option<&str>,
    ) -> anyhow::Result<ModelStatus> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let path = format!("/admin/models/{name}/swap");
        let body = source.map_or_else(|| json!({}), |source| json!({"source": source}));
        self.call(Method::POST, &path, body.to_string().into())
            .await
    }

    async fn call<T: DeserializeOwned>(
        self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let addr = self.0;
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(addr)).await;
        let stream = stream
            .map_err(|_| anyhow!("it does not answer"))
            .and_then(|s| Ok(s?));
        let stream = stream.with_context(|| {
            format!(
                "cannot reach the admin listener at {addr}: is `realm serve` running, and is \
                 --admin-addr the same here and there?"
            )
        })?;
        let broken = || format!("the connection to {addr} broke");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, addr.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
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
