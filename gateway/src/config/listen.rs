//! Where and how the server listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::{AdminAddr, ConfigError};

/// Where to listen and how to log. Absent values fall through to the next source.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", default)]
pub struct ListenSettings {
    /// Address to serve the API on [default: 127.0.0.1]
    #[arg(long, env = "REALM_HOST", value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Port to serve the API on; 0 picks a free one [default: 8080]
    #[arg(long, env = "REALM_PORT")]
    pub port: Option<u16>,
    /// Address of /health, /ready, /metrics and the admin API, or `off` [default: 127.0.0.1:9090]
    #[arg(long, env = "REALM_ADMIN_ADDR", value_name = "HOST:PORT")]
    pub admin_addr: Option<AdminAddr>,
    /// Serve on addresses other than loopback although nobody has to show a key
    #[arg(
        long,
        env = "REALM_ALLOW_UNAUTHENTICATED",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub allow_unauthenticated: Option<bool>,
    /// Largest request body in bytes [default: 16777216]
    #[arg(long, env = "REALM_MAX_BODY_BYTES", value_name = "BYTES")]
    pub max_body_bytes: Option<usize>,
    /// Seconds that running requests may take to finish after SIGTERM [default: 30]
    #[arg(long, env = "REALM_DRAIN_TIMEOUT", value_name = "SECONDS")]
    pub drain_timeout: Option<u64>,
}

/// Where and how to listen, with every default filled in.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the admin listener.
    pub admin: Option<SocketAddr>,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// How long running requests may take to finish after SIGTERM.
    pub drain_timeout: Duration,
}

impl ListenSettings {
    /// Flags and environment over the file over defaults. `keys`: whether requests must show one.
    pub fn resolve(self, file: Self, keys: bool) -> Result<Listen, ConfigError> {
        let host = self
            .host
            .or(file.host)
            .unwrap_or(Ipv4Addr::LOCALHOST.into());
        let unauthenticated = self
            .allow_unauthenticated
            .or(file.allow_unauthenticated)
            .unwrap_or(false);
        let admin = self.admin_addr.or(file.admin_addr);
        let admin = admin.unwrap_or_default().addr();
        if !unauthenticated && !keys && !host.is_loopback() {
            return Err(ConfigError::Unauthenticated(host));
        }
        if let Some(ip) = admin.map(|addr| addr.ip())
            && !unauthenticated
            && !ip.is_loopback()
        {
            return Err(ConfigError::UnauthenticatedAdmin(ip));
        }
        Ok(Listen {
            api: SocketAddr::new(host, self.port.or(file.port).unwrap_or(8080)),
            admin,
            max_body_bytes: self
                .max_body_bytes
                .or(file.max_body_bytes)
                .unwrap_or(16 << 20),
            drain_timeout: Duration::from_secs(
                self.drain_timeout.or(file.drain_timeout).unwrap_or(30),
            ),
        })
    }
}
