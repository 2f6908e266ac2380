//! `realm-shm`: a submit ring, a completion ring, and slots that are written and read in place.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{anyhow, bail};
use realm_shm::{
    AlignedBuf, GatewayEnd, Geometry, Message, Owner, Quota, SlabError, SlotClass, SlotRef,
    WorkerEnd,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};

use crate::lane::{Lane, Payload, Spin, sum};

const ABI: u32 = 0xbe4c;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a Realm worker looks for a message before it sleeps, and for how long at most.
const WORKER_SPIN: Duration = Duration::from_micros(50);
/// Kind of a message whose first word is in `args` and whose payload is not there.
const COUNT: u16 = 2;

/// The gateway's end: sends input slots, receives output slots.
pub(crate) struct Gateway {
    end: GatewayEnd,
    payload: Payload,
    /// Whether the worker answers without a payload, and so needs no slot for one.
    answers: bool,
    copy: AlignedBuf,
    spin: Spin,
    /// How the gateway sleeps, if it does.
    sleep: Option<(Runtime, AsyncFd<OwnedFd>)>,
}

impl Gateway {
    pub(crate) fn new(
        socket: OwnedFd,
        payload: Payload,
        window: usize,
        answers: bool,
        spin: Spin,
        sleeps: bool,
    ) -> anyhow::Result<Self> {
        let slots = |count: usize| {
            vec![SlotClass {
                bytes: payload.bytes() as u32,
                count: count as u32,
            }]
        };
        let geometry = Geometry {
            input_slots: slots(window),
            output_slots: slots(if answers { 1 } else { window }),
            quota: Quota::default(),
        };
        let end = GatewayEnd::create(1, &geometry, ABI)?;
        let sleep = if sleeps {
            let runtime = Builder::new_current_thread().enable_io().build()?;
            let wake = end.wake_fd().try_clone_to_owned()?;
            let register = || {
                let _context = runtime.enter();
                #[expect(deprecated, reason = "its successor is unsafe to call")]
                AsyncFd::with_interest(wake, Interest::READABLE)
            };
            let wake = register()?;
            Some((runtime, wake))
        } else {
            None
        };
        end.offer(socket.as_fd(), PATIENCE)?;
        Ok(Gateway {
            end,
            payload,
            answers,
            copy: AlignedBuf::new(),
            spin,
            sleep,
        })
    }

    /// The worker's next message.
    fn next(&mut self) -> anyhow::Result<Message> {
        let Some((runtime, wake)) = &self.sleep else {
            return self.spin.until(|| Ok(self.end.poll()?));
        };
        // As the gateway's driver does it.
        loop {
            if let Some(message) = self.end.poll()? {
                return Ok(message);
            }
            if self.end.arm()? {
                runtime.block_on(wake.readable())?.clear_ready();
            }
        }
    }

    fn release(&mut self, message: &Message) -> anyhow::Result<()> {
        self.end.free_input(message.input)?;
        if !message.output.is_none() {
            self.end.free_output(message.output)?;
        }
        Ok(())
    }
}

impl Lane for Gateway {
    fn send(&mut self, first: u64) -> anyhow::Result<()> {
        let bytes = self.payload.bytes();
        let input = loop {
            match self.end.alloc_input(bytes, Owner::GATEWAY) {
                Ok(slot) => break slot,
                Err(SlabError::Exhausted { .. }) => {
                    // Every slot is under way: wait for an answer, then take what else came.
                    let mut answer = Some(self.next()?);
                    while let Some(message) = answer {
                        self.release(&message)?;
                        answer = self.end.poll()?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        if self.payload.touched {
            self.payload.set_first(first);
            let slot = self.end.input_mut(input)?;
            slot.copy_from_slice(bytemuck::cast_slice(self.payload.words()));
        }
        let output = match self.answers {
            true => SlotRef::NONE,
            false => self.end.alloc_output(bytes, Owner::GATEWAY)?,
        };
        self.end.submit(&Message {
            kind: 1,
            input,
            output,
            args: [0; 2],
        })?;
        Ok(())
    }

    fn recv(&mut self) -> anyhow::Result<u64> {
        loop {
            let message = self.next()?;
            if message.kind == COUNT {
                return Ok(self.payload.sum(message.args[0]));
            }
            if self.answers {
                self.release(&message)?;
                continue;
            }
            let len = message.output.len as usize;
            self.end.copy_output(message.output, len, &mut self.copy)?;
            self.release(&message)?;
            return Ok(sum(bytemuck::cast_slice(&self.copy)));
        }
    }
}

/// The worker's end: receives input slots, sends output slots.
pub(crate) struct Worker {
    end: WorkerEnd,
    payload: Payload,
    /// Whether each message is answered when it is read, without a payload of its own.
    answers: bool,
    /// The message to be answered with a payload.
    current: Option<Message>,
    spin: Spin,
    sleeps: bool,
}

impl Worker {
    pub(crate) fn new(
        socket: OwnedFd,
        payload: Payload,
        answers: bool,
        spin: Spin,
        sleeps: bool,
    ) -> anyhow::Result<Self> {
        Ok(Worker {
            end: WorkerEnd::accept(socket.as_fd(), ABI, PATIENCE)?,
            payload,
            answers,
            current: None,
            spin,
            sleeps,
        })
    }

    fn next(&mut self) -> anyhow::Result<Message> {
        if !self.sleeps {
            return self.spin.until(|| Ok(self.end.try_recv()?));
        }
        let message = self.end.recv_timeout(WORKER_SPIN, PATIENCE)?;
        message.ok_or_else(|| anyhow!("the gateway did nothing for a minute"))
    }
}

impl Lane for Worker {
    fn recv(&mut self) -> anyhow::Result<u64> {
        let message = self.next()?;
        let mut found = 0;
        if self.payload.touched {
            found = sum(bytemuck::cast_slice(self.end.input(message.input)?));
        }
        if self.answers {
            self.end.complete(&message)?;
        } else {
            self.current = Some(message);
        }
        Ok(found)
    }

    fn send(&mut self, first: u64) -> anyhow::Result<()> {
        let answer = match self.current.take() {
            Some(message) => {
                self.payload.set_first(first);
                let slot = self.end.output_mut(message.output)?;
                slot.copy_from_slice(bytemuck::cast_slice(self.payload.words()));
                message
            }
            None if self.answers => Message {
                kind: COUNT,
                args: [first, 0],
                ..Message::default()
            },
            None => bail!("nothing to answer"),
        };
        Ok(self.end.complete(&answer)?)
    }
}
