//! Many requests: when each is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Client, Sample, Unanswered};
use super::summary::Summary;
use crate::api::random;

/// What is asked, and how often.
#[derive(Debug, Clone)]
pub struct Work {
    /// Name of the model.
    pub model: String,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub output_tokens: usize,
    /// Number of requests.
    pub requests: usize,
    /// Other prompts and arrivals for another seed.
    pub seed: u64,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// So many at once: the next one when one is answered.
    Closed {
        /// Requests at once.
        concurrency: usize,
    },
    /// Independent of the answers, as many strangers would send them (a Poisson process).
    Open {
        /// Requests per second on average.
        rate: f64,
    },
}

/// Token ids of prompts: present in every vocabulary, and beyond the special tokens at its start.
const IDS: std::ops::Range<u64> = 300..1000;

impl Work {
    fn body(&self, index: usize) -> Value {
        let seed = random::key(self.seed, index);
        let span = IDS.end - IDS.start;
        let ids: Vec<_> = (0..self.prompt_tokens)
            .map(|at| IDS.start + random::key(seed, at) % span)
            .collect();
        json!({
            "model": self.model, "prompt": ids, "max_tokens": self.output_tokens,
            "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": {"include_usage": true},
        })
    }

    /// Time between the arrivals of request `index` and the one before it.
    fn gap(&self, index: usize, rate: f64) -> Duration {
        // Of 53 bits, as many as an f64 holds; never 0.
        let uniform = ((random::key(!self.seed, index) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::try_from_secs_f64(-uniform.ln() / rate).unwrap_or_default()
    }
}

/// Sends all requests and sums up how they went. `progress` is told after each how many are done.
///
/// # Errors
/// If the very first one fails: then the others would, too.
pub async fn run(
    client: &Client,
    work: &Work,
    arrivals: Arrivals,
    progress: impl Fn(usize) + Send + Sync + 'static,
) -> anyhow::Result<Summary> {
    // What a server sets up for its first request is not what is measured.
    let first = work.body(usize::MAX);
    client
        .complete(&mut client.connect().await?, &first)
        .await?;
    let shared = Arc::new((client.clone(), work.clone(), progress));
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    match arrivals {
        Arrivals::Closed { concurrency } => {
            let next = Arc::new(AtomicUsize::new(0));
            for _ in 0..concurrency.min(work.requests) {
                let (shared, next, done) = (shared.clone(), next.clone(), done.clone());
                tasks.spawn(async move {
                    let (client, work, progress) = &*shared;
                    let mut samples = Vec::new();
                    let mut connection = None;
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= work.requests {
                            return samples;
                        }
                        let sample = one(client, work, index, &mut connection).await;
                        samples.push(sample);
                        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                    }
                });
            }
        }
        Arrivals::Open { rate } => {
            let mut due = Duration::ZERO;
            for index in 0..work.requests {
                if index > 0 {
                    due += work.gap(index, rate);
                }
                let (shared, done) = (shared.clone(), done.clone());
                tasks.spawn(async move {
                    let due = start + due;
                    tokio::time::sleep_until(due.into()).await;
                    let (client, work, progress) = &*shared;
                    let sample = one(client, work, index, &mut None).await;
                    // Whoever comes then waits from then on, whatever holds the request up.
                    let sample = sample.map(|sample| Sample {
                        sent: due,
                        ..sample
                    });
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                    vec![sample]
                });
            }
        }
    }
    let samples = tasks.join_all().await.into_iter().flatten().collect();
    Ok(Summary::new(arrivals, samples, start.elapsed()))
}

/// Sends a request, over the connection of the one before it if that was answered and its server
/// keeps connections; some close them without saying so.
async fn one(
    client: &Client,
    work: &Work,
    index: usize,
    connection: &mut Option<super::client::Connection>,
) -> anyhow::Result<Sample> {
    let body = work.body(index);
    if let Some(mut open) = connection.take() {
        match client.complete(&mut open, &body).await {
            Err(error) if error.is::<Unanswered>() => {}
            other => {
                *connection = Some(open);
                return other;
            }
        }
    }
    let mut open = client.connect().await?;
    let sample = client.complete(&mut open, &body).await?;
    *connection = Some(open);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_and_repeat_with_their_seed() {
        let work = Work {
            model: "m".into(),
            prompt_tokens: 20,
            output_tokens: 1,
            requests: 2,
            seed: 5,
        };
        assert_ne!(work.body(0)["prompt"], work.body(1)["prompt"]);
        assert_eq!(work.body(1), work.clone().body(1));
        assert_eq!(work.body(0)["prompt"].as_array().map(Vec::len), Some(20));
        let total: Duration = (0..1000).map(|index| work.gap(index, 10.0)).sum();
        assert!((80.0..120.0).contains(&total.as_secs_f64()), "{total:?}");
    }
}
