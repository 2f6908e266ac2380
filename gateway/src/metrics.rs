//! What the gateway counts. Engine metrics carry vLLM's names and its `model_name` label, so that
//! dashboards and routers written for vLLM work; what is Realm's own is called `realm_*`.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use realm_shared::control::ModelInfo;

use crate::batching::{Event, FinishReason, Stats};

const TTFT: &str = "vllm:time_to_first_token_seconds";
const INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
const E2E: &str = "vllm:e2e_request_latency_seconds";
const QUEUE_TIME: &str = "vllm:request_queue_time_seconds";
const STEP_TIME: &str = "realm_step_seconds";

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
    describe_gauge!(
        "vllm:cache_config_info",
        "Size of the KV arena, in the labels"
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
    describe_gauge!(
        "realm_sequences_held",
        "Sequences out of the batch because their client reads too slowly"
    );
    describe_counter!("realm_sequences_failed_total", "Sequences that failed");
    describe_counter!(
        "realm_sequences_cancelled_total",
        "Sequences whose request went away"
    );
    describe_counter!(
        "realm_sequences_admitted_total",
        "Sequences of requests that joined the queue"
    );
    describe_counter!(
        "realm_worker_ends_total",
        "Workers that ended, whatever the cause"
    );
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

/// The metrics of one model. Handles are looked up once: recording is a few atomic adds.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    name: String,
    running: Gauge,
    waiting: Gauge,
    held: Gauge,
    kv_usage: Gauge,
    preemptions: Counter,
    admitted: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished_stop: Counter,
    finished_length: Counter,
    failed: Counter,
    cancelled: Counter,
    worker_ends: Counter,
    ttft: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    queue_time: Histogram,
    step_time: Histogram,
}

impl ModelMetrics {
    pub(crate) fn new(name: &str) -> Self {
        let label = || [("model_name", name.to_owned())];
        let finished = |reason: &'static str| counter!("vllm:request_success_total", "model_name" => name.to_owned(), "finished_reason" => reason);
        ModelMetrics {
            name: name.to_owned(),
            running: gauge!("vllm:num_requests_running", &label()),
            waiting: gauge!("vllm:num_requests_waiting", &label()),
            held: gauge!("realm_sequences_held", &label()),
            kv_usage: gauge!("vllm:kv_cache_usage_perc", &label()),
            preemptions: counter!("vllm:num_preemptions_total", &label()),
            admitted: counter!("realm_sequences_admitted_total", &label()),
            prompt_tokens: counter!("vllm:prompt_tokens_total", &label()),
            generation_tokens: counter!("vllm:generation_tokens_total", &label()),
            finished_stop: finished("stop"),
            finished_length: finished("length"),
            failed: counter!("realm_sequences_failed_total", &label()),
            cancelled: counter!("realm_sequences_cancelled_total", &label()),
            worker_ends: counter!("realm_worker_ends_total", &label()),
            ttft: histogram!(TTFT, &label()),
            inter_token: histogram!(INTER_TOKEN, &label()),
            e2e: histogram!(E2E, &label()),
            queue_time: histogram!(QUEUE_TIME, &label()),
            step_time: histogram!(STEP_TIME, &label()),
        }
    }

    pub(crate) fn worker_ready(&self, info: &ModelInfo) {
        gauge!(
            "vllm:cache_config_info",
            "model_name" => self.name.clone(),
            "block_size" => info.block_size.to_string(),
            "num_gpu_blocks" => info.block_count.to_string(),
        )
        .set(1.0);
    }

    pub(crate) fn worker_ended(&self) {
        self.worker_ends.increment(1);
    }

    /// Takes over how things stand in the scheduler.
    pub(crate) fn record(&self, stats: &Stats) {
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.held.set(stats.held as f64);
        self.kv_usage
            .set(stats.blocks_used as f64 / stats.blocks_total.max(1) as f64);
        self.preemptions.absolute(stats.preemptions);
    }

    /// A sequence of a request joined the queue. Each is ended or abandoned once.
    pub(crate) fn admitted(&self) {
        self.admitted.increment(1);
    }

    /// Nobody waits for a sequence any more.
    pub(crate) fn abandoned(&self) {
        self.cancelled.increment(1);
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

    pub(crate) fn ended(&self, event: &Event, after: Duration) {
        match event {
            Event::Finished(FinishReason::Stop) => self.finished_stop.increment(1),
            Event::Finished(FinishReason::Length) => self.finished_length.increment(1),
            Event::Failed(_) => return self.failed.increment(1),
            Event::Token { .. } | Event::PromptLogprobs { .. } => return,
        }
        self.e2e.record(after.as_secs_f64());
    }
}

/// Counts one response of the API.
pub(crate) fn http_response(route: &'static str, status: u16) {
    counter!("realm_http_requests_total", "route" => route, "status" => status.to_string())
        .increment(1);
}
