//! What the samples of a load come to.

use std::fmt;
use std::time::{Duration, Instant};

use realm_shared::causes::told;
use serde::Serialize;

use super::client::Sample;
use super::load::Arrivals;

/// How a server bore a load. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Requests at once, in a closed loop.
    pub concurrency: Option<usize>,
    /// Requests per second, in an open one.
    pub rate: Option<f64>,
    /// Requests answered.
    pub completed: usize,
    /// Requests not answered.
    pub failed: usize,
    /// What the first of them was told.
    pub error: Option<String>,
    /// From the first request to the last answer, in seconds.
    pub seconds: f64,
    /// Prompt tokens of the answered requests, per second.
    pub prompt_tokens_per_second: f64,
    /// Tokens generated per second.
    pub output_tokens_per_second: f64,
    /// Tokens generated per second while all of a closed loop's streams were running.
    pub decode_tokens_per_second: Option<f64>,
    /// From sending a request to its first token.
    pub first_token: Percentiles,
    /// Between two chunks of a stream; most servers put one token into each.
    pub next_token: Percentiles,
    /// From sending a request to the end of its answer.
    pub whole: Percentiles,
}

/// Values that so many percent of all are not above; milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
}

impl Percentiles {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        let at = |percent: usize| {
            // The smallest value that enough others are not above.
            let rank = (times.len() * percent).div_ceil(100).max(1);
            let time = times.get(rank - 1).copied().unwrap_or_default();
            time.as_secs_f64() * 1e3
        };
        Percentiles {
            p50: at(50),
            p90: at(90),
            p99: at(99),
        }
    }
}

impl Summary {
    pub(super) fn new(
        arrivals: Arrivals,
        samples: Vec<anyhow::Result<Sample>>,
        elapsed: Duration,
    ) -> Self {
        let (mut good, mut errors) = (Vec::new(), Vec::new());
        for sample in samples {
            match sample {
                Ok(sample) => good.push(sample),
                Err(error) => errors.push(told(error.as_ref())),
            }
        }
        let seconds = elapsed.as_secs_f64();
        let per_second = |tokens: fn(&Sample) -> u64| {
            good.iter().map(tokens).sum::<u64>() as f64 / seconds.max(f64::MIN_POSITIVE)
        };
        let (concurrency, rate) = match arrivals {
            Arrivals::Closed { concurrency } => (Some(concurrency), None),
            Arrivals::Open { rate } => (None, Some(rate)),
        };
        let gaps = |sample: &Sample| {
            let pairs: Vec<_> = sample
                .chunks
                .windows(2)
                .map(|two| two[1] - two[0])
                .collect();
            pairs
        };
        Summary {
            concurrency,
            rate,
            completed: good.len(),
            failed: errors.len(),
            prompt_tokens_per_second: per_second(|sample| sample.prompt_tokens),
            output_tokens_per_second: per_second(|sample| sample.output_tokens),
            decode_tokens_per_second: concurrency.and_then(|n| decode_rate(&good, n)),
            first_token: Percentiles::of(good.iter().map(|s| s.first() - s.sent)),
            next_token: Percentiles::of(good.iter().flat_map(gaps)),
            whole: Percentiles::of(good.iter().map(|s| s.last() - s.sent)),
            error: errors.into_iter().next(),
            seconds,
        }
    }
}

impl Sample {
    fn first(&self) -> Instant {
        self.chunks.first().copied().unwrap_or(self.sent)
    }

    fn last(&self) -> Instant {
        self.chunks.last().copied().unwrap_or(self.sent)
    }
}

/// Tokens per second over the time in which `concurrency` streams had their first token and not
/// yet their last one. None if there was no such time.
fn decode_rate(samples: &[Sample], concurrency: usize) -> Option<f64> {
    // A stream's tokens after its first one, each at the time it came; a server may put several
    // into a chunk.
    let mut events: Vec<(Instant, i32, f64)> = Vec::new();
    for sample in samples {
        let each = sample.output_tokens as f64 / sample.chunks.len() as f64;
        events.push((sample.first(), 1, 0.0));
        events.extend(sample.chunks.iter().skip(1).map(|at| (*at, 0, each)));
        events.push((sample.last(), -1, 0.0));
    }
    // At one instant tokens come before ends, and starts last.
    events.sort_by_key(|(at, change, _)| (*at, [1, 0, 2][(*change + 1) as usize]));
    let (mut running, mut full, mut tokens) = (0, Duration::ZERO, 0.0);
    let mut before: Option<Instant> = None;
    for (at, change, count) in events {
        if running == concurrency as i32 {
            full += at - before.unwrap_or(at);
            tokens += count;
        }
        running += change;
        before = Some(at);
    }
    (full > Duration::ZERO).then(|| tokens / full.as_secs_f64())
}

/// The titles of a table of summaries.
pub fn header() -> String {
    format!(
        "{:>8} {:>5} {:>9} {:>9} {:>9}  {:^23}  {:^23}  {:^23}\n{:>8} {:>5} {:>9} {:>9} {:>9}  {}  {}  {}",
        "load",
        "done",
        "prompt",
        "output",
        "decode",
        "first token ms",
        "next token ms",
        "whole ms",
        "",
        "",
        "tok/s",
        "tok/s",
        "tok/s",
        Titles,
        Titles,
        Titles,
    )
}

struct Titles;

impl fmt::Display for Titles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} {:>7} {:>7}", "p50", "p90", "p99")
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7.1} {:>7.1} {:>7.1}", self.p50, self.p90, self.p99)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = match (self.concurrency, self.rate) {
            (Some(concurrency), _) => concurrency.to_string(),
            (_, Some(rate)) => format!("{rate}/s"),
            _ => String::new(),
        };
        let decode = self.decode_tokens_per_second;
        write!(
            f,
            "{load:>8} {:>5} {:>9.1} {:>9.1} {:>9}  {}  {}  {}",
            self.completed,
            self.prompt_tokens_per_second,
            self.output_tokens_per_second,
            decode.map_or("-".to_owned(), |rate| format!("{rate:.1}")),
            self.first_token,
            self.next_token,
            self.whole,
        )?;
        if let Some(error) = &self.error {
            write!(f, "\n{:>8} {:>5} failed: {error}", "", self.failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, sent: u64, chunks: &[u64], output_tokens: u64) -> Sample {
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        Sample {
            sent: at(&sent),
            chunks: chunks.iter().map(at).collect(),
            prompt_tokens: 10,
            output_tokens,
        }
    }

    #[test]
    fn times_and_rates_are_what_they_are_called() {
        let start = Instant::now();
        let samples = vec![
            Ok(sample(start, 0, &[100, 200, 300, 400], 4)),
            // Two tokens in each chunk.
            Ok(sample(start, 0, &[200, 300, 500], 6)),
            Err(anyhow::anyhow!("broken")),
        ];
        let elapsed = Duration::from_millis(500);
        let summary = Summary::new(Arrivals::Closed { concurrency: 2 }, samples, elapsed);
        assert_eq!((summary.completed, summary.failed), (2, 1));
        assert_eq!(summary.error.as_deref(), Some("broken"));
        assert!((summary.output_tokens_per_second - 20.0).abs() < 1e-6);
        assert!((summary.prompt_tokens_per_second - 40.0).abs() < 1e-6);
        assert!((summary.first_token.p50 - 100.0).abs() < 1e-6);
        assert!((summary.first_token.p99 - 200.0).abs() < 1e-6);
        assert!((summary.whole.p90 - 500.0).abs() < 1e-6);
        assert!((summary.next_token.p50 - 100.0).abs() < 1e-6);
        assert!((summary.next_token.p99 - 200.0).abs() < 1e-6);
        // Both ran from 200 to 400 ms: two tokens of the first, a chunk of two of the second.
        let rate = summary.decode_tokens_per_second.expect("both ran");
        assert!((rate - 4.0 / 0.2).abs() < 1e-6, "{rate}");
        // A token that comes when another stream ends still came in time.
        let pair = [
            sample(start, 0, &[0, 100], 2),
            sample(start, 0, &[0, 50, 100], 3),
        ];
        assert!(matches!(decode_rate(&pair, 2), Some(rate) if (rate - 30.0).abs() < 1e-6));
    }

    #[test]
    fn of_nothing_there_is_nothing() {
        let arrivals = Arrivals::Open { rate: 1.0 };
        let summary = Summary::new(arrivals, Vec::new(), Duration::ZERO);
        assert_eq!(
            (summary.completed, summary.decode_tokens_per_second),
            (0, None)
        );
        assert!(summary.whole.p99.abs() < 1e-9);
        assert!(!summary.to_string().is_empty());
    }
}
