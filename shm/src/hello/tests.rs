#![cfg(not(miri))] // needs real sockets

use super::*;
use crate::tests::{ABI, PATIENCE, geometry};
use crate::{GatewayEnd, WorkerEnd, socket};
use std::os::fd::AsFd;
use std::thread;

const SOON: Duration = Duration::from_millis(20);

/// Lets a gateway offer to a peer that behaves as `peer` says, and returns how that ended.
fn offer_to(limit: Duration, peer: impl FnOnce(OwnedFd) + Send) -> Result<Peer, HandshakeError> {
    let gateway = GatewayEnd::create(7, &geometry(), ABI).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || peer(theirs));
        gateway.offer(ours.as_fd(), limit)
    })
}

/// Answers an offer with `change` applied to the right answer.
fn answer_with(change: impl FnOnce(&mut Hello) + Send) -> Result<Peer, HandshakeError> {
    offer_to(PATIENCE, |socket| {
        let deadline = Deadline::new(PATIENCE);
        let (offer, _) = receive_offer(socket.as_fd(), deadline).unwrap();
        let mut answer = offer.answer(ABI);
        change(&mut answer);
        send(socket.as_fd(), &answer, &[], deadline).unwrap();
    })
}

/// Lets a worker accept what `gateway` offers.
fn accept_from(
    limit: Duration,
    gateway: impl FnOnce(OwnedFd) + Send,
) -> Result<WorkerEnd, HandshakeError> {
    let (ours, theirs) = socket::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || gateway(theirs));
        WorkerEnd::accept(ours.as_fd(), ABI, limit)
    })
}

/// Some descriptors, none of them a segment.
fn descriptors() -> [OwnedFd; DESCRIPTORS] {
    let (a, b) = socket::pair().unwrap();
    let (c, _) = socket::pair().unwrap();
    [a, b, c]
}

#[test]
fn both_sides_agree_and_the_peer_of_a_pair_is_not_named() {
    let accepted = offer_to(PATIENCE, |socket| {
        WorkerEnd::accept(socket.as_fd(), ABI, PATIENCE).unwrap();
    });
    assert_eq!(accepted.unwrap(), Peer { pid: None });
}

#[test]
fn the_gateway_accepts_only_the_answer_to_its_offer() {
    answer_with(|_| {}).unwrap();
    let what = |change: fn(&mut Hello)| match answer_with(change).unwrap_err() {
        HandshakeError::Version { what, .. } | HandshakeError::Mismatch { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(what(|answer| answer.version += 1), "protocol version");
    assert_eq!(what(|answer| answer.abi += 1), "message version");
    assert_eq!(what(|answer| answer.layout ^= 1), "memory layout");
    assert_eq!(what(|answer| answer.epoch += 1), "epoch");
    assert_eq!(what(|answer| answer.role = OFFERS), "role");
    assert_eq!(what(|answer| answer.gateway_bytes -= 1), "size of G");
    assert_eq!(what(|answer| answer.worker_bytes -= 1), "size of W");
    assert_eq!(what(|answer| answer.geometry ^= 1), "geometry");
    assert_eq!(what(|answer| answer.reserved = 1), "reserved field");
    let malformed = answer_with(|answer| answer.magic ^= 1).unwrap_err();
    assert!(
        matches!(malformed, HandshakeError::Malformed(_)),
        "{malformed}"
    );
}

#[test]
fn both_sides_name_the_version_that_differs() {
    let gateway = offer_to(PATIENCE, |socket| {
        let worker = WorkerEnd::accept(socket.as_fd(), ABI + 1, PATIENCE).unwrap_err();
        let (ours, theirs) = (u64::from(ABI) + 1, u64::from(ABI));
        assert!(
            matches!(worker, HandshakeError::Version { what: "message version", ours: o, theirs: t }
                if (o, t) == (ours, theirs)),
            "{worker}"
        );
    });
    let error = gateway.unwrap_err().to_string();
    assert_eq!(
        error,
        "the peer has message version 0x12, this side 0x11: gateway and worker must be of the same release"
    );
}

#[test]
fn garbage_of_any_length_is_malformed() {
    for len in [1, 63, 64, 65, 4096] {
        let offered = offer_to(PATIENCE, |socket| {
            // Closing with the offer unread would reset the connection.
            receive_offer(socket.as_fd(), Deadline::new(PATIENCE)).unwrap();
            socket::send(socket.as_fd(), &vec![0x55; len]).unwrap();
        });
        assert!(matches!(offered, Err(HandshakeError::Malformed(_))));
        let accepted = accept_from(PATIENCE, |socket| {
            socket::send(socket.as_fd(), &vec![0x55; len]).unwrap();
        });
        assert!(matches!(accepted, Err(HandshakeError::Malformed(_))));
    }
}

#[test]
fn a_silent_peer_times_out_and_a_closed_one_is_noticed() {
    let gateway = GatewayEnd::create(7, &geometry(), ABI).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let offered = gateway.offer(ours.as_fd(), SOON);
    assert!(matches!(offered, Err(HandshakeError::Timeout(SOON))));
    drop((ours, theirs));
    let (ours, theirs) = socket::pair().unwrap();
    let accepted = WorkerEnd::accept(ours.as_fd(), ABI, SOON);
    assert!(matches!(accepted, Err(HandshakeError::Timeout(SOON))));
    drop((ours, theirs));

    assert!(matches!(
        offer_to(PATIENCE, drop),
        Err(HandshakeError::Closed)
    ));
    assert!(matches!(
        accept_from(PATIENCE, drop),
        Err(HandshakeError::Closed)
    ));
}

#[test]
fn an_offer_needs_three_segments_of_the_announced_kind() {
    let hello = Hello::offer(7, ABI, [1 << 20, 1 << 20], 0);
    let send_with = |count: usize| {
        accept_from(PATIENCE, move |socket| {
            let owned = descriptors();
            let descriptors: Vec<_> = owned.iter().map(AsFd::as_fd).take(count).collect();
            send(
                socket.as_fd(),
                &hello,
                &descriptors,
                Deadline::new(PATIENCE),
            )
            .unwrap();
        })
        .unwrap_err()
    };
    for count in 0..DESCRIPTORS {
        assert!(matches!(send_with(count), HandshakeError::Malformed(_)));
    }
    let error = send_with(DESCRIPTORS);
    assert!(
        matches!(error, HandshakeError::Segment { segment: "G", .. }),
        "{error}"
    );
}
