//! Clients that read slowly hold up nobody but themselves.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use common::client::{Transcript, read_stream};
use common::requests::Request;
use common::{Server, completion, wait_until};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::RcvBuf,
};
use serde_json::json;

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

/// More than every buffer between the two holds: the kernel alone takes some MiB for its side.
fn long_request() -> Request {
    Request {
        name: "a long answer".into(),
        path: "/v1/chat/completions",
        body: json!({
            "model": "realm-tiny", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1500,
            "ignore_eos": true, "n": 4, "seed": 3, "logprobs": true, "top_logprobs": 20, "stream": true
        }),
    }
}

/// Asks through a narrow connection. HTTP/1.0 has no chunks: the body is all there is until the
/// end.
fn ask(server: &Server) -> TcpStream {
    let mut stream = narrow(server.api_address());
    let request = long_request();
    let (path, body) = (request.path, request.body.to_string());
    write!(
        stream,
        "POST {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("writes");
    stream
}

/// The whole answer.
fn read(stream: TcpStream) -> Transcript {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).expect("a head");
    }
    read_stream(stream, &long_request(), |_| ControlFlow::Continue(())).finished()
}

#[test]
fn a_slow_reader_leaves_the_batch_and_misses_nothing() {
    let server = Server::start(&[]);
    let undisturbed = read(ask(&server));
    assert_eq!(undisturbed.choices.len(), 4);

    let slow = ask(&server);
    wait_until("all choices are held", || {
        server.metric("realm_sequences_held") == 4.0
    });
    assert_eq!(server.metric("vllm:num_requests_running"), 0.0);
    assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0);
    let other = server.post("/v1/completions", &completion("Hi"));
    assert_eq!(other.status, 200);
    assert_eq!(server.metric("realm_sequences_held"), 4.0);
    assert_eq!(read(slow), undisturbed);
    assert_eq!(server.metric("realm_sequences_held"), 0.0);
}

#[test]
fn a_slow_reader_that_goes_away_leaves_nothing() {
    let server = Server::start(&[]);
    let slow = ask(&server);
    wait_until("all choices are held", || {
        server.metric("realm_sequences_held") == 4.0
    });
    drop(slow);
    wait_until("they are cancelled", || {
        server.metric("realm_sequences_cancelled_total") == 4.0
    });
    assert_eq!(server.metric("realm_sequences_held"), 0.0);
}
