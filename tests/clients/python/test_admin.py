"""The admin listener: health, readiness and metrics."""

import time

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

GAUGES = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
COUNTERS = ["vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success"]
HISTOGRAMS = ["vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"]


@pytest.fixture
def get(admin_url):
    return lambda path: requests.get(admin_url + path, timeout=30)


@pytest.fixture
def metrics(get, model):
    """Reads the values of this model: by sample name, summed over all other labels."""

    def read():
        sums = {}
        for family in text_string_to_metric_families(get("/metrics").text):
            for sample in family.samples:
                if sample.labels.get("model_name") == model:
                    sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return sums

    return read


def test_health(get):
    response = get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_ready(get, model):
    response = get("/ready")
    assert response.status_code == 200
    assert response.json()["models"][model]["state"] == "ready"


def test_metrics_are_in_the_text_format(get, chat, model):
    chat("Hello!")
    response = get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = {family.name: family.type for family in text_string_to_metric_families(response.text)}
    for names, kind in [(GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")]:
        assert {name: types.get(name) for name in names} == dict.fromkeys(names, kind)


def test_every_metric_has_the_model_name(metrics, chat):
    chat("Hello!", max_tokens=8)
    names = metrics().keys()
    assert set(GAUGES) <= names
    assert {name + "_total" for name in COUNTERS} <= names
    assert {name + "_count" for name in HISTOGRAMS} <= names


@pytest.fixture
def metrics_at_rest(metrics):
    """Reads the values once nothing runs any more: the last step is put away after its answer."""

    def read():
        for _ in range(100):
            values = metrics()
            if values["vllm:num_requests_running"] == values["vllm:num_requests_waiting"] == 0:
                return values
            time.sleep(0.1)
        pytest.fail("sequences still run that nobody waits for")

    return read


def test_metrics_count_what_was_done(metrics_at_rest, chat):
    before = metrics_at_rest()
    answer = chat(n=2, max_tokens=9, extra_body={"ignore_eos": True})
    after = metrics_at_rest()

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown("vllm:prompt_tokens_total") >= answer.usage.prompt_tokens
    assert grown("vllm:generation_tokens_total") == answer.usage.completion_tokens == 18
    assert grown("vllm:request_success_total") >= 1
    assert grown("vllm:time_to_first_token_seconds_count") >= 1
    assert after["vllm:kv_cache_usage_perc"] == 0


def test_every_sequence_is_accounted_for(metrics_at_rest, chat, complete, client, model):
    """Admitted = completed + failed + cancelled."""
    before = metrics_at_rest()
    chat("Hello!", n=3, temperature=0)
    complete(max_tokens=32, temperature=0, stop="a")
    complete("One day", max_tokens=0, echo=True)
    with client.completions.create(
        model=model, prompt="x", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    after = metrics_at_rest()

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown("realm_sequences_admitted_total") == 6
    assert grown("vllm:request_success_total") == 5
    assert grown("realm_sequences_cancelled_total") == 1
    assert grown("realm_sequences_failed_total") == 0


def test_admin_is_not_on_the_api(post):
    for path in ["/../metrics", "/../health", "/../ready"]:
        assert post(path, method="GET").status_code == 404


def test_unknown_path(get):
    assert get("/nope").status_code == 404
