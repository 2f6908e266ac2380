//! Clients that read slowly hold up nobody but themselves.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use common::{Server, completion, wait_until};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::RcvBuf,
};
use serde_json::{Value, json};

/// A connection whose kernel buffer holds next to nothing. It must be made small before it
/// connects, or the peer has been promised more.
fn narrow(address: &str) -> TcpStream {
    let address: SocketAddrV4 = address.parse().expect("an address");
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .expect("socket");
    setsockopt(&fd, RcvBuf, &4096).expect("sets the buffer's size");
    connect(fd.as_raw_fd(), &SockaddrIn::from(address)).expect("connects");
    fd.into()
}

/// The text of each choice of a stream.
fn texts(stream: &str) -> BTreeMap<u64, String> {
    assert!(
        stream.ends_with("data: [DONE]\n\n"),
        "ends in {:?}",
        &stream[stream.len() - 200..]
    );
    let mut texts = BTreeMap::new();
    for data in stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        let Ok(chunk) = serde_json::from_str::<Value>(data) else {
            continue;
        };
        for choice in chunk["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index");
            *texts.entry(index).or_insert_with(String::new) +=
                choice["text"].as_str().unwrap_or("");
        }
    }
    texts
}

#[test]
fn a_slow_reader_leaves_the_batch_and_misses_nothing() {
    let server = Server::start(&[]);
    let request = json!({
        "model": "realm-tiny", "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": true,
        "n": 4, "seed": 3, "logprobs": 5, "stream": true
    });
    let body = request.to_string();
    // HTTP/1.0 has no chunks: the body is all there is until the end.
    let head = format!(
        "POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let ask = || {
        let mut stream = narrow(server.api_address());
        stream.write_all(head.as_bytes()).expect("writes");
        stream.write_all(body.as_bytes()).expect("writes");
        stream
    };
    let read = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("reads");
        texts(&answer)
    };
    let undisturbed = read(ask());
    assert_eq!(undisturbed.len(), 4);

    let slow = ask();
    wait_until("all choices are held", || {
        server.metric("realm_sequences_held") == 4.0
    });
    assert_eq!(server.metric("vllm:num_requests_running"), 0.0);
    assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0);
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );
    assert_eq!(server.metric("realm_sequences_held"), 4.0);
    assert_eq!(read(slow), undisturbed);
    assert_eq!(server.metric("realm_sequences_held"), 0.0);
}

#[test]
fn a_slow_reader_that_goes_away_leaves_nothing() {
    let server = Server::start(&[]);
    let body = json!({
        "model": "realm-tiny", "prompt": "x", "max_tokens": 1500, "ignore_eos": true, "n": 4, "logprobs": 5,
        "stream": true
    })
    .to_string();
    let mut stream = narrow(server.api_address());
    write!(
        stream,
        "POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("writes");
    wait_until("all choices are held", || {
        server.metric("realm_sequences_held") == 4.0
    });
    drop(stream);
    wait_until("they are cancelled", || {
        server.metric("realm_sequences_cancelled_total") == 4.0
    });
    assert_eq!(server.metric("realm_sequences_held"), 0.0);
}
