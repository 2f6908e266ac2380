//! The addresses, and what happens on them from start to drain.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::accept::Acceptor;
use super::{admin, api};
use crate::config::Listen;
use crate::programs::Programs;
use crate::tenants::Access;
use crate::workers::Models;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {source}; choose another one with {flag}")]
pub struct BindError {
    addr: SocketAddr,
    flag: &'static str,
    source: std::io::Error,
}

/// Listeners that have their addresses and do not answer yet.
#[derive(Debug)]
pub struct Bound {
    api: TcpListener,
    admin: Option<TcpListener>,
    settings: Listen,
}

impl Bound {
    /// Takes the addresses, so that a port in use is known before models are loaded.
    pub async fn new(settings: Listen) -> Result<Self, BindError> {
        let api = bind(settings.api, "--port").await?;
        let admin = match settings.admin {
            Some(addr) => Some(bind(addr, "--admin-addr").await?),
            None => None,
        };
        Ok(Bound {
            api,
            admin,
            settings,
        })
    }

    /// Where the API is, with the port that was picked.
    pub fn api_addr(&self) -> std::io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Where the admin listener is.
    pub fn admin_addr(&self) -> Option<std::io::Result<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr)
    }
}

async fn bind(addr: SocketAddr, flag: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| BindError { addr, flag, source })
}

/// Serves until `shutdown` resolves, then lets running requests finish within the drain timeout.
/// True: all of them did.
pub async fn serve(
    bound: Bound,
    models: Models,
    programs: Programs,
    access: Arc<Access>,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()>,
) -> bool {
    let drain_timeout = bound.settings.drain_timeout;
    let admin = bound.admin.map(|listener| {
        let service = admin::service(
            models.clone(),
            programs.clone(),
            metrics,
            access.ledger().clone(),
        );
        // Health and metrics answer until the very end, so they are not part of the drain.
        tokio::spawn(async move { Acceptor::new(listener, service).accept().await })
    });
    let service = api::service(models, programs, access, bound.settings.max_body_bytes);
    let api = Acceptor::new(bound.api, service);
    tokio::select! {
        () = api.accept() => {}
        () = shutdown => {}
    }
    tracing::info!(timeout = ?drain_timeout, "draining: no new connections; running requests may finish");
    let drained = tokio::time::timeout(drain_timeout, api.drain())
        .await
        .is_ok();
    if let Some(admin) = admin {
        admin.abort();
    }
    drained
}
