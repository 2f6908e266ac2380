//! iceoryx2: publish-subscribe with loans, a service each way.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::lane::{Lane, Payload, Spin, sum};

type Service = ipc::Service;

/// How long the other process may do nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a wait for an event goes on before the queue is looked at again: with one that lasts
/// a minute, a run on two cores was seen to stand still on both sides, with a message unread.
const NAP: Duration = Duration::from_millis(10);

/// One process's end.
pub(crate) struct Port {
    publisher: Publisher<Service, [u64], ()>,
    subscriber: Subscriber<Service, [u64], ()>,
    /// The peer's bell and ours, if the receivers sleep.
    events: Option<(Notifier<Service>, Listener<Service>)>,
    payload: Payload,
    spin: Spin,
    leads: bool,
    /// Messages that may be under way; 0 where each is answered anyway.
    window: u64,
    sent: u64,
    received: u64,
    /// What the peer has said it received.
    confirmed: u64,
    socket: OwnedFd,
    _node: Node<Service>,
}

fn failed(e: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("iceoryx2: {e:?}")
}

impl Port {
    pub(crate) fn new(
        socket: OwnedFd,
        leads: bool,
        payload: Payload,
        window: usize,
        answers: bool,
        spin: Spin,
        events: bool,
    ) -> anyhow::Result<Self> {
        set_log_level(LogLevel::Fatal);
        // The leader names the services; both have opened them before either goes on.
        let mut name = [0; 8];
        if leads {
            name = u64::from(std::process::id()).to_le_bytes();
            rustix::io::write(&socket, &name)?;
        } else {
            rustix::io::read(&socket, &mut name)?;
        }
        let name = format!("realm-shm-bench/{}", u64::from_le_bytes(name));
        let node = NodeBuilder::new().create::<Service>().map_err(failed)?;
        let service = |way: &str| {
            let name = ServiceName::new(&format!("{name}/{way}")).map_err(failed)?;
            node.service_builder(&name)
                .publish_subscribe::<[u64]>()
                .enable_safe_overflow(false)
                .history_size(0)
                .subscriber_max_buffer_size(window)
                .subscriber_max_borrowed_samples(2)
                .max_publishers(1)
                .max_subscribers(1)
                .max_nodes(2)
                .open_or_create()
                .map_err(failed)
        };
        let bell = |way: &str| {
            let name = ServiceName::new(&format!("{name}/{way}/bell")).map_err(failed)?;
            node.service_builder(&name)
                .event()
                .open_or_create()
                .map_err(failed)
        };
        let ways = if leads {
            ["there", "back"]
        } else {
            ["back", "there"]
        };
        let publisher = service(ways[0])?
            .publisher_builder()
            .initial_max_slice_len(payload.bytes() / 8)
            .max_loaned_samples(2)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .map_err(failed)?;
        let subscriber = service(ways[1])?
            .subscriber_builder()
            .buffer_size(window)
            .create()
            .map_err(failed)?;
        let events = if events {
            let notifier = bell(ways[0])?.notifier_builder().create().map_err(failed)?;
            let listener = bell(ways[1])?.listener_builder().create().map_err(failed)?;
            Some((notifier, listener))
        } else {
            None
        };
        let port = Port {
            publisher,
            subscriber,
            events,
            payload,
            spin,
            leads,
            window: if answers { window as u64 } else { 0 },
            sent: 0,
            received: 0,
            confirmed: 0,
            socket,
            _node: node,
        };
        port.meet()?;
        Ok(port)
    }

    /// Waits until the peer is here as well.
    fn meet(&self) -> anyhow::Result<()> {
        rustix::io::write(self.socket.as_fd(), b"!")?;
        let mut byte = [0];
        match rustix::io::read(self.socket.as_fd(), &mut byte)? {
            1 => Ok(()),
            _ => bail!("the other process is gone"),
        }
    }

    fn publish(&self, words: usize, fill: impl FnOnce(&mut [u64])) -> anyhow::Result<()> {
        let sample = self.publisher.loan_slice_uninit(words).map_err(failed)?;
        // SAFETY: the words lie in memory that the system cleared and that only words are ever
        // written to. iceoryx2's own benchmark does the same, to hand over without writing.
        let mut sample = unsafe { sample.assume_init() };
        fill(sample.payload_mut());
        sample.send().map_err(failed)?;
        if let Some((notifier, _)) = &self.events {
            notifier.notify().map_err(failed)?;
        }
        Ok(())
    }

    /// Waits for a message and looks at it where it lies.
    fn next<T>(&self, read: impl Fn(&[u64]) -> T) -> anyhow::Result<T> {
        let look = || {
            let sample = self.subscriber.receive().map_err(failed)?;
            Ok(sample.map(|sample| read(sample.payload())))
        };
        let Some((_, listener)) = &self.events else {
            return self.spin.until(look);
        };
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(found) = look()? {
                return Ok(found);
            }
            listener.timed_wait(|_| {}, NAP).map_err(failed)?;
        }
        bail!("the other process did nothing for a minute");
    }
}

impl Lane for Port {
    fn send(&mut self, first: u64) -> anyhow::Result<()> {
        if self.leads && self.window > 0 && self.sent - self.confirmed == self.window {
            self.confirmed = self.next(|words| words[0])?;
        }
        self.sent += 1;
        self.payload.set_first(first);
        self.publish(self.payload.bytes() / 8, |words| {
            if self.payload.touched {
                words.copy_from_slice(self.payload.words());
            }
        })
    }

    fn recv(&mut self) -> anyhow::Result<u64> {
        if self.leads && self.window > 0 {
            // The peer's counts, up to the one that says it has everything; then its sum.
            while self.confirmed / (self.window / 2) < self.sent / (self.window / 2) {
                self.confirmed = self.next(|words| words[0])?;
            }
        }
        let touched = self.payload.touched;
        let found = self.next(|words| if touched { sum(words) } else { 0 })?;
        self.received += 1;
        if !self.leads && self.window > 0 && self.received.is_multiple_of(self.window / 2) {
            let count = self.received;
            self.publish(1, |words| words[0] = count)
                .context("confirming")?;
        }
        Ok(found)
    }

    fn linger(&mut self) -> anyhow::Result<()> {
        // The services live as long as their ports: wait until the leader has closed its socket.
        let mut byte = [0];
        rustix::io::read(self.socket.as_fd(), &mut byte)?;
        Ok(())
    }
}
