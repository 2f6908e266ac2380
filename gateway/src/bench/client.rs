//! One request: sent, and its answer timed chunk by chunk.

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

/// A server and how to talk to it.
#[derive(Debug, Clone)]
pub struct Client {
    authority: String,
    /// What stands before `/completions`.
    base: String,
    key: Option<String>,
}

/// A connection that requests go through one after the other.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// A connection ended before anything of an answer came.
#[derive(Debug)]
pub(super) struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection broke")
    }
}

/// What became of a request.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) sent: Instant,
    /// When each chunk with something generated came; at least one.
    pub(super) chunks: Vec<Instant>,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
}

/// What matters of a chunk.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Piece>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    text: String,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// The `HOST:PORT` of an API at `url`, such as `http://127.0.0.1:8080/v1`, and what stands before
/// every path there.
///
/// # Errors
/// If it is no `http` address.
pub(crate) fn place(url: &str) -> anyhow::Result<(String, String)> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    let host = uri.host();
    let Some(host) = host.filter(|_| uri.scheme_str() == Some("http")) else {
        bail!("{url} is not of the form http://HOST:PORT/v1; encryption is not spoken here");
    };
    let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    Ok((authority, uri.path().trim_end_matches('/').to_owned()))
}

impl Client {
    /// For the API at `url`, such as `http://127.0.0.1:8080/v1`.
    ///
    /// # Errors
    /// If it is no `http` address.
    pub fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let (authority, base) = place(url)?;
        Ok(Client {
            authority,
            base,
            key,
        })
    }

    /// The first model that the server lists.
    ///
    /// # Errors
    /// If it cannot be reached, or lists none.
    pub async fn first_model(&self) -> anyhow::Result<String> {
        let mut connection = self.connect().await?;
        let response = self
            .send(&mut connection, Method::GET, "/models", Bytes::new())
            .await?;
        let body = response.into_body().collect().await?.to_bytes();
        let list: Value = serde_json::from_slice(&body).context("the list of models is no JSON")?;
        let id = list["data"][0]["id"].as_str();
        Ok(id
            .ok_or_else(|| anyhow!("{} lists no models", self.authority))?
            .to_owned())
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Connection> {
        let addr = &self.authority;
        let stream = TcpStream::connect(addr).await;
        let stream = stream.with_context(|| format!("cannot reach {addr}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("{addr} does not speak HTTP"))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(
        &self,
        connection: &mut Connection,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let response = connection
            .send_request(request.body(Full::new(body))?)
            .await
            .context(Unanswered)?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(response)
    }

    /// Asks for a streamed completion and reads it to its end.
    pub(super) async fn complete(
        &self,
        connection: &mut Connection,
        body: &Value,
    ) -> anyhow::Result<Sample> {
        let body = body.to_string().into();
        connection.ready().await.context(Unanswered)?;
        let sent = Instant::now();
        let response = self
            .send(connection, Method::POST, "/completions", body)
            .await?;
        let mut body = response.into_body();
        let (mut chunks, mut usage, mut ended) = (Vec::new(), None, false);
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the stream broke")?;
            let now = Instant::now();
            events.push(frame.data_ref().map_or(&[], |data| data));
            while let Some(data) = events.next() {
                if data == b"[DONE]" {
                    ended = true;
                    continue;
                }
                let chunk: Chunk = serde_json::from_slice(&data)
                    .with_context(|| format!("no chunk: {}", String::from_utf8_lossy(&data)))?;
                if let Some(error) = chunk.error {
                    bail!("{error}");
                }
                usage = chunk.usage.or(usage);
                // The last one may only say why it is the last.
                let generated =
                    |piece: &Piece| !piece.text.is_empty() || piece.finish_reason.is_none();
                if chunk.choices.iter().any(generated) {
                    chunks.push(now);
                }
            }
        }
        let usage = usage.ok_or_else(|| anyhow!("the server tells no usage"))?;
        if !ended || chunks.is_empty() {
            bail!("the stream ended early");
        }
        Ok(Sample {
            sent,
            chunks,
            prompt_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
        })
    }
}

/// Server-sent events, put together from pieces.
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
    /// Where the next event begins.
    next: usize,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.next));
        self.buffer
            .extend(bytes.iter().filter(|byte| **byte != b'\r'));
    }

    /// The data of the next event that has any.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = &self.buffer[self.next..];
            let end = rest.windows(2).position(|two| two == b"\n\n")?;
            self.next += end + 2;
            let mut lines = rest[..end].split(|byte| *byte == b'\n');
            if let Some(data) = lines.find_map(|line| line.strip_prefix(b"data:")) {
                return Some(data.trim_ascii().to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let stream = b": ping\n\ndata: {\"a\":1}\r\n\r\ndata:[DONE]\n\n";
        for cut in 1..stream.len() {
            let mut events = Events::default();
            let mut all = Vec::new();
            for piece in stream.chunks(cut) {
                events.push(piece);
                while let Some(data) = events.next() {
                    all.push(data);
                }
            }
            assert_eq!(all, [b"{\"a\":1}".to_vec(), b"[DONE]".to_vec()]);
        }
    }

    #[test]
    fn only_plain_http_is_taken() {
        assert!(Client::new("https://example.com/v1", None).is_err());
        assert!(Client::new("no url at all", None).is_err());
        let client = Client::new("http://localhost:8000/v1/", None).expect("an URL");
        assert_eq!(
            (&*client.authority, &*client.base),
            ("localhost:8000", "/v1")
        );
    }
}
