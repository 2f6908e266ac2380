//! What every transport does, and what it carries.

use std::time::{Duration, Instant};

use anyhow::bail;

/// One process's end of a transport.
pub(crate) trait Lane {
    /// Sends the payload with `first` as its first word, as soon as there is room.
    fn send(&mut self, first: u64) -> anyhow::Result<()>;

    /// Waits for a payload and returns the sum of its words.
    fn recv(&mut self) -> anyhow::Result<u64>;

    /// Stays until what was sent last can have been received.
    fn linger(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// What is sent each time, in private memory.
#[derive(Debug)]
pub(crate) struct Payload {
    words: Vec<u64>,
    /// Sum of all words but the first.
    rest: u64,
    /// Whether it is written and read. Else nobody looks at the memory that is handed over.
    pub(crate) touched: bool,
}

impl Payload {
    pub(crate) fn new(bytes: usize, touched: bool) -> Self {
        let words: Vec<u64> = (0..bytes as u64 / 8).map(|n| n * 0x9e37_79b9).collect();
        let rest = words.iter().skip(1).sum();
        Payload {
            words,
            rest,
            touched,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// The words to be sent.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(crate) fn set_first(&mut self, first: u64) {
        self.words[0] = first;
    }

    /// What the receiver of the payload finds as its sum.
    pub(crate) fn sum(&self, first: u64) -> u64 {
        if self.touched {
            first.wrapping_add(self.rest)
        } else {
            0
        }
    }
}

/// Reads words from where they lie.
pub(crate) fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// How to wait for the other process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spin {
    /// It runs on this core, and only when this process lets it.
    pub(crate) shared_core: bool,
}

impl Spin {
    /// Repeats `look` until it finds something, or for a minute.
    pub(crate) fn until<T>(
        self,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let mut end = None;
        loop {
            for _ in 0..100_000 {
                if let Some(found) = look()? {
                    return Ok(found);
                }
                if self.shared_core {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
            let end = *end.get_or_insert_with(|| Instant::now() + Duration::from_secs(60));
            if Instant::now() > end {
                bail!("the other process did nothing for a minute");
            }
        }
    }
}
