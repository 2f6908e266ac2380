//! A server with keys: its folder, and requests that show one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::Server;

/// What came of a request.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        value.to_str().expect("text")
    }

    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// A folder with settings and keys, and a server that uses them.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new(settings: &str) -> Self {
        let place = Place {
            dir: tempfile::tempdir().expect("temporary directory"),
        };
        place.configure(settings);
        place
    }

    pub(crate) fn configure(&self, settings: &str) {
        // `api_keys` is a path from the folder of the settings on.
        let text = format!("api_keys = \"keys.json\"\n{settings}");
        std::fs::write(self.config(), text).expect("writes");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.file("realm.toml")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.file("keys.json")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn key(&self, tenant: &str) -> String {
        api_key(
            &self.keys(),
            &["generate", "--tenant", tenant, "--name", "test"],
        )
    }

    pub(crate) fn serve(&self) -> Server {
        let config = self.config();
        let config = config.to_str().expect("UTF-8");
        Server::start(&["--config", config])
    }
}

/// What `realm api-key` prints.
pub(crate) fn api_key(file: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realm"));
    let output = command
        .arg("api-key")
        .args(args)
        .arg("--file")
        .arg(file)
        .output();
    let output = output.expect("realm runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

/// Sends a request, with a key and with a body if there are such; the answer is still to be read.
pub(crate) fn send(
    server: &Server,
    key: Option<&str>,
    path: &str,
    body: Option<&Value>,
) -> ureq::http::Response<ureq::Body> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .new_agent();
    let url = format!("http://{}{path}", server.api_address());
    let mut headers = ureq::http::HeaderMap::new();
    if let Some(key) = key {
        let bearer = format!("Bearer {key}").parse().expect("a header");
        headers.insert("authorization", bearer);
    }
    let response = match body {
        Some(body) => {
            let mut request = agent.post(url).content_type("application/json");
            request.headers_mut().expect("valid").extend(headers);
            request.send(body.to_string())
        }
        None => {
            let mut request = agent.get(url);
            request.headers_mut().expect("valid").extend(headers);
            request.call()
        }
    };
    response.expect("the server answers")
}

pub(crate) fn ask(server: &Server, key: Option<&str>, path: &str, body: Option<&Value>) -> Reply {
    let mut response = send(server, key, path, body);
    let text = response.body_mut().read_to_string().expect("a body");
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_str(&text).unwrap_or_else(|_| text.into()),
    }
}
