//! What the gateway counts. Engine metrics carry vLLM's names and its `model_name` label, so that
//! dashboards and routers written for vLLM work; what is Realm's own is called `realm_*`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::formatting::{
    sanitize_label_value, write_help_line, write_type_line,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use realm_shared::control::ModelInfo;

use crate::batching::{Event, FinishReason, Stats};
use crate::tenants::Outcome;

const TTFT: &str = "vllm:time_to_first_token_seconds";
const INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
const E2E: &str = "vllm:e2e_request_latency_seconds";
const QUEUE_TIME: &str = "vllm:request_queue_time_seconds";
const STEP_TIME: &str = "realm_step_seconds";
const RESUME_TIME: &str = "realm_resume_seconds";

const UPKEEP: Duration = Duration::from_secs(5);

/// Bucket bounds in seconds, as vLLM has them.
const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
const STEP_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// Installs the recorder for the process. The handle renders what was recorded.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let exact = |name: &str| Matcher::Full(name.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(exact(TTFT), TTFT_BUCKETS)?
        .set_buckets_for_metric(exact(INTER_TOKEN), INTER_TOKEN_BUCKETS)?
        .set_buckets_for_metric(exact(E2E), REQUEST_BUCKETS)?
        .set_buckets_for_metric(exact(QUEUE_TIME), REQUEST_BUCKETS)?
        .set_buckets_for_metric(exact(STEP_TIME), STEP_BUCKETS)?
        .set_buckets_for_metric(exact(RESUME_TIME), TTFT_BUCKETS)?
        .install_recorder()?;
    describe_gauge!("vllm:num_requests_running", "Sequences in the batch");
    describe_gauge!(
        "vllm:num_requests_waiting",
        "Sequences waiting to join the batch"
    );
    describe_gauge!(
        "vllm:kv_cache_usage_perc",
        "Fraction of KV blocks in use, 0 to 1"
    );
    describe_counter!(
        "vllm:prompt_tokens_total",
        "Prompt tokens of sequences that started"
    );
    describe_counter!("vllm:generation_tokens_total", "Tokens generated");
    describe_counter!(
        "vllm:request_success_total",
        "Sequences that finished, by reason"
    );
    describe_counter!(
        "vllm:num_preemptions_total",
        "Sequences that gave up their KV blocks to others"
    );
    describe_counter!(
        "realm_step_tokens_total",
        "Tokens computed: of prompts, unless they were found in the KV arena, and of answers"
    );
    describe_counter!(
        "vllm:prefix_cache_queries_total",
        "Tokens of sequences that joined the batch, each time they did"
    );
    describe_counter!(
        "vllm:prefix_cache_hits_total",
        "Those of them that the KV arena held already"
    );
    describe_histogram!(
        TTFT,
        Unit::Seconds,
        "From admission to the first token of a sequence"
    );
    describe_histogram!(
        INTER_TOKEN,
        Unit::Seconds,
        "Between two tokens of a sequence"
    );
    describe_histogram!(
        E2E,
        Unit::Seconds,
        "From admission to the end of a sequence"
    );
    describe_histogram!(
        QUEUE_TIME,
        Unit::Seconds,
        "From admission to joining the batch"
    );
    describe_histogram!(
        STEP_TIME,
        Unit::Seconds,
        "Time that a worker computed on one step"
    );
    describe_histogram!(
        RESUME_TIME,
        Unit::Seconds,
        "From the end of a worker to the next token of each sequence that goes on with another"
    );
    describe_gauge!(
        "realm_sequences_held",
        "Sequences out of the batch because their client reads too slowly"
    );
    describe_gauge!(
        "realm_saved_tokens",
        "Tokens that programs have saved for later requests"
    );
    describe_gauge!(
        "realm_programs_quarantined",
        "Versions of programs that are refused because they crashed workers"
    );
    gauge!("realm_programs_quarantined").set(0.0);
    describe_counter!("realm_sequences_failed_total", "Sequences that failed");
    describe_counter!(
        "realm_sequences_cancelled_total",
        "Sequences whose request went away"
    );
    describe_counter!(
        "realm_sequences_admitted_total",
        "Sequences of requests that joined the queue"
    );
    describe_counter!("realm_worker_ends_total", "Workers that ended, by reason");
    describe_counter!(
        "realm_http_requests_total",
        "Responses by route and status code"
    );
    Ok(handle)
}

/// Folds what histograms have buffered, for ever. Without it they grow until somebody scrapes.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut turns = tokio::time::interval(UPKEEP);
    loop {
        turns.tick().await;
        handle.run_upkeep();
    }
}

/// The KV arena of each served model, in the labels of a gauge. Written when asked for and not
/// recorded, as the recorder never forgets a series: readers take the first of a model, which
/// would be that of a worker long gone.
pub(crate) fn cache_config<'a>(infos: impl Iterator<Item = (&'a str, ModelInfo)>) -> String {
    const NAME: &str = "vllm:cache_config_info";
    let mut text = String::new();
    write_help_line(
        &mut text,
        NAME,
        None,
        None,
        "Size of the KV arena, in the labels",
    );
    write_type_line(&mut text, NAME, None, None, "gauge");
    for (model, info) in infos {
        let model = sanitize_label_value(model);
        let (size, count) = (info.block_size, info.block_count);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            r#"{NAME}{{model_name="{model}",block_size="{size}",num_gpu_blocks="{count}"}} 1"#
        );
    }
    text
}

/// Whether each served model has a worker that computes. Written when asked for, like
/// [`cache_config`]: one that is served no more has no line.
pub(crate) fn model_ready<'a>(models: impl Iterator<Item = (&'a str, bool)>) -> String {
    const NAME: &str = "realm_model_ready";
    let mut text = String::new();
    let what = "Whether the model has a worker that computes: 1 or 0";
    write_help_line(&mut text, NAME, None, None, what);
    write_type_line(&mut text, NAME, None, None, "gauge");
    for (model, ready) in models {
        let model = sanitize_label_value(model);
        let _ = writeln!(
            text,
            r#"{NAME}{{model_name="{model}"}} {}"#,
            u8::from(ready)
        );
    }
    text
}

/// How the sequences and blocks of a model stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    running: usize,
    waiting: usize,
    held: usize,
    blocks_used: usize,
    blocks_total: usize,
    /// Tokens that programs have saved.
    saved: usize,
}

impl Standing {
    fn new(stats: &Stats, saved: usize) -> Self {
        Standing {
            saved,
            running: stats.running,
            waiting: stats.waiting,
            held: stats.held,
            blocks_used: stats.blocks_used,
            blocks_total: stats.blocks_total,
        }
    }
}

/// By model, the sum over all versions that run, of which there are several during a swap.
static STANDINGS: Mutex<BTreeMap<String, Arc<Mutex<Standing>>>> = Mutex::new(BTreeMap::new());

/// The metrics of one version of a model. Handles are looked up once: recording is a few atomic
/// adds. What it added to the gauges is taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    /// Of all versions together.
    sum: Arc<Mutex<Standing>>,
    /// This version's part in it.
    share: Standing,
    /// As they were last recorded.
    recorded: Stats,
    running: Gauge,
    waiting: Gauge,
    held: Gauge,
    kv_usage: Gauge,
    saved: Gauge,
    preemptions: Counter,
    step_tokens: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    admitted: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished_stop: Counter,
    finished_length: Counter,
    failed: Counter,
    cancelled: Counter,
    name: String,
    ttft: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    queue_time: Histogram,
    step_time: Histogram,
    resume_time: Histogram,
}

impl ModelMetrics {
    /// `ends` are the reasons for which workers may end.
    pub(crate) fn new(name: &str, ends: &[&'static str]) -> Self {
        let label = || [("model_name", name.to_owned())];
        let finished = |reason: &'static str| counter!("vllm:request_success_total", "model_name" => name.to_owned(), "finished_reason" => reason);
        let sum = lock(&STANDINGS).entry(name.to_owned()).or_default().clone();
        let metrics = ModelMetrics {
            sum,
            share: Standing::default(),
            recorded: Stats::default(),
            running: gauge!("vllm:num_requests_running", &label()),
            waiting: gauge!("vllm:num_requests_waiting", &label()),
            held: gauge!("realm_sequences_held", &label()),
            kv_usage: gauge!("vllm:kv_cache_usage_perc", &label()),
            saved: gauge!("realm_saved_tokens", &label()),
            preemptions: counter!("vllm:num_preemptions_total", &label()),
            step_tokens: counter!("realm_step_tokens_total", &label()),
            prefix_queries: counter!("vllm:prefix_cache_queries_total", &label()),
            prefix_hits: counter!("vllm:prefix_cache_hits_total", &label()),
            admitted: counter!("realm_sequences_admitted_total", &label()),
            prompt_tokens: counter!("vllm:prompt_tokens_total", &label()),
            generation_tokens: counter!("vllm:generation_tokens_total", &label()),
            finished_stop: finished("stop"),
            finished_length: finished("length"),
            failed: counter!("realm_sequences_failed_total", &label()),
            cancelled: counter!("realm_sequences_cancelled_total", &label()),
            name: name.to_owned(),
            ttft: histogram!(TTFT, &label()),
            inter_token: histogram!(INTER_TOKEN, &label()),
            e2e: histogram!(E2E, &label()),
            queue_time: histogram!(QUEUE_TIME, &label()),
            step_time: histogram!(STEP_TIME, &label()),
            resume_time: histogram!(RESUME_TIME, &label()),
        };
        metrics.show(&lock(&metrics.sum));
        // From 0 on: a series that begins with 1 does not increase, and alerts miss the first.
        for reason in ends {
            metrics.worker_ends(reason).increment(0);
        }
        metrics
    }

    pub(crate) fn worker_ended(&self, reason: &'static str) {
        self.worker_ends(reason).increment(1);
    }

    fn worker_ends(&self, reason: &'static str) -> Counter {
        let name = self.name.clone();
        counter!("realm_worker_ends_total", "model_name" => name, "reason" => reason)
    }

    /// Takes over how things stand in the scheduler, and how many tokens programs have saved.
    pub(crate) fn record(&mut self, stats: &Stats, saved: usize) {
        self.stand(Standing::new(stats, saved));
        let before = std::mem::replace(&mut self.recorded, *stats);
        self.preemptions
            .increment(stats.preemptions - before.preemptions);
        self.step_tokens
            .increment(stats.tokens_computed - before.tokens_computed);
        self.prefix_queries
            .increment(stats.prefix_tokens - before.prefix_tokens);
        self.prefix_hits
            .increment(stats.prefix_tokens_found - before.prefix_tokens_found);
    }

    fn stand(&mut self, now: Standing) {
        if now == self.share {
            return;
        }
        let mut sum = lock(&self.sum);
        let change = |sum: &mut usize, now: usize, before: usize| *sum = *sum + now - before;
        change(&mut sum.running, now.running, self.share.running);
        change(&mut sum.waiting, now.waiting, self.share.waiting);
        change(&mut sum.held, now.held, self.share.held);
        change(
            &mut sum.blocks_used,
            now.blocks_used,
            self.share.blocks_used,
        );
        change(
            &mut sum.blocks_total,
            now.blocks_total,
            self.share.blocks_total,
        );
        change(&mut sum.saved, now.saved, self.share.saved);
        self.share = now;
        self.show(&sum);
    }

    /// Sets the gauges. The sum is locked meanwhile, so that no older one is shown after it.
    fn show(&self, sum: &MutexGuard<'_, Standing>) {
        self.running.set(sum.running as f64);
        self.waiting.set(sum.waiting as f64);
        self.held.set(sum.held as f64);
        self.kv_usage
            .set(sum.blocks_used as f64 / sum.blocks_total.max(1) as f64);
        self.saved.set(sum.saved as f64);
    }

    /// A sequence of a request joined the queue. Each is ended or abandoned once.
    pub(crate) fn admitted(&self) {
        self.admitted.increment(1);
    }

    /// Nobody waits for a sequence any more: its request has all it wants, or waits no more.
    pub(crate) fn cancelled(&self, outcome: Outcome, after: Duration) {
        match outcome {
            Outcome::Cancelled => self.cancelled.increment(1),
            _ => self.ended(&Event::Finished(FinishReason::Stop), after),
        }
    }

    pub(crate) fn step(&self, busy: Duration) {
        self.step_time.record(busy.as_secs_f64());
    }

    pub(crate) fn queued(&self, waited: Duration) {
        self.queue_time.record(waited.as_secs_f64());
    }

    pub(crate) fn first_token(&self, after: Duration, prompt_tokens: usize) {
        self.prompt_tokens.increment(prompt_tokens as u64);
        self.generation_tokens.increment(1);
        self.ttft.record(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.generation_tokens.increment(1);
        self.inter_token.record(after.as_secs_f64());
    }

    /// A sequence went on that stood still since its worker ended.
    pub(crate) fn resumed(&self, after: Duration) {
        self.resume_time.record(after.as_secs_f64());
    }

    pub(crate) fn ended(&self, event: &Event, after: Duration) {
        match event {
            Event::Finished(FinishReason::Stop) => self.finished_stop.increment(1),
            Event::Finished(FinishReason::Length) => self.finished_length.increment(1),
            Event::Failed(_) => return self.failed.increment(1),
            _ => return,
        }
        self.e2e.record(after.as_secs_f64());
    }
}

impl Drop for ModelMetrics {
    fn drop(&mut self) {
        self.stand(Standing::default());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Counts one response of the API.
pub(crate) fn http_response(route: &'static str, status: u16) {
    counter!("realm_http_requests_total", "route" => route, "status" => status.to_string())
        .increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_model_add_up_and_take_their_part_back() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let shown = |name: &str| {
            let text = handle.render();
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name}{{")));
            let value = line.and_then(|line| line.rsplit(' ').next());
            value.expect(name).parse::<f64>().expect("a number")
        };
        let standing = |running, waiting, blocks_used, preemptions| Stats {
            running,
            waiting,
            blocks_used,
            blocks_total: 10,
            preemptions,
            ..Stats::default()
        };
        metrics::with_local_recorder(&recorder, || {
            let mut old = ModelMetrics::new("versions add up", &[]);
            assert_eq!(shown("vllm:num_requests_running"), 0.0);
            old.record(&standing(3, 1, 5, 2), 0);
            let mut new = ModelMetrics::new("versions add up", &[]);
            assert_eq!(shown("vllm:num_requests_running"), 3.0);
            new.record(&standing(2, 0, 4, 1), 0);
            old.record(&standing(1, 0, 2, 2), 0);
            assert_eq!(shown("vllm:num_requests_running"), 3.0);
            assert_eq!(shown("vllm:num_requests_waiting"), 0.0);
            assert_eq!(shown("vllm:kv_cache_usage_perc"), 0.3);
            assert_eq!(shown("vllm:num_preemptions_total"), 3.0);
            drop(old);
            assert_eq!(shown("vllm:num_requests_running"), 2.0);
            assert_eq!(shown("vllm:kv_cache_usage_perc"), 0.4);
            assert_eq!(shown("vllm:num_preemptions_total"), 3.0);
        });
    }

    #[test]
    fn ends_of_workers_are_counted_from_zero() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let metrics = ModelMetrics::new("from zero", &["hung", "died"]);
            metrics.worker_ended("died");
        });
        let text = handle.render();
        for (reason, count) in [("hung", 0), ("died", 1)] {
            let line = format!(
                r#"realm_worker_ends_total{{model_name="from zero",reason="{reason}"}} {count}"#
            );
            assert!(text.lines().any(|shown| shown == line), "{text}");
        }
    }
}
