//! A client of a running server's admin API.

use std::net::SocketAddr;

use anyhow::anyhow;
use bytes::Bytes;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::client::{Client, JSON, PATIENCE};
use crate::workers::ModelStatus;

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
        let client = Client {
            authority: self.0.to_string(),
            base: String::new(),
            key: None,
            name: "admin listener",
            hint: "is `realm serve` running, and is --admin-addr the same here and there?",
        };
        client.call(method, path, JSON, body).await
    }
}
