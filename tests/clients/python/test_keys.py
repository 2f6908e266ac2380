"""A server that asks for keys, as OpenAI's SDK sees it, and the clients of the documents."""

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from documented import does_what_it_says, examples, start

TIMEOUT = 120
# Of the tenant "busy", by the minute: a burst of more is above it for a few seconds.
REQUESTS = 30

SETTINGS = f"""
api_keys = "keys.json"

[server]
port = 0
admin_addr = "127.0.0.1:0"

[worker]
kv_memory = "64MiB"

[[tenant]]
id = "busy"
requests_per_minute = {REQUESTS}

[[tenant]]
id = "poor"
tokens_per_day = 30

[[tenant]]
id = "single"
max_concurrent = 1

[[tenant]]
id = "double"
max_concurrent = 2
"""


def realm(*args):
    """What a command of `realm` prints."""
    command = [os.environ["REALM_BINARY"], *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("realm")
    (folder / "realm.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def new_key(place):
    def make(tenant, *args):
        return realm("api-key", "generate", "--tenant", tenant, "--name", "test", "--file", place / "keys.json", *args)

    return make


@pytest.fixture(scope="module")
def server(place, new_key):
    """Addresses of a server that asks for keys: `listening` and `admin`."""
    new_key("acme")
    log = place / "log"
    with open(log, "w") as out:
        server = subprocess.Popen([os.environ["REALM_BINARY"], "serve", "--config", place / "realm.toml"], stderr=out)
    try:
        deadline = time.monotonic() + TIMEOUT
        found, ready = {}, False
        while not ready:
            found = dict(re.findall(r"(listening|admin) on (http://\S+)", log.read_text()))
            if len(found) == 2:
                ready = requests.get(found["admin"] + "/ready", timeout=TIMEOUT).ok
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found
    finally:
        server.terminate()
        server.wait(TIMEOUT)


@pytest.fixture(scope="module")
def url(server):
    """Its API."""
    return server["listening"] + "/v1"


@pytest.fixture(scope="module")
def client_of(url):
    """A client with the SDK's own retries."""
    return lambda key, **params: openai.OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, **params)


def ask(client, **params):
    return client.completions.create(model="realm-tiny", prompt="The", **{"max_tokens": 1, **params})


def test_a_wrong_key_is_an_authentication_error(client_of):
    with pytest.raises(openai.AuthenticationError) as error:
        ask(client_of("sk-none"))
    assert error.value.code == "invalid_api_key"


def test_a_key_is_good_until_it_is_disabled(client_of, new_key, place):
    key = new_key("acme", "--expires", "1d")
    client = client_of(key, max_retries=0)
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            assert client.models.list().data[0].id == "realm-tiny"
            break
        except openai.AuthenticationError:
            assert time.monotonic() < deadline
    realm("api-key", "disable", key[:11], "--file", place / "keys.json")
    with pytest.raises(openai.AuthenticationError):
        while time.monotonic() < deadline:
            client.models.list()


def wait_until_seen(url, key):
    """Until the gateway has read the file with a key."""
    while requests.get(url + "/models", headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT).status_code != 200:
        time.sleep(0.05)


def test_a_burst_above_the_limit_gets_through_with_the_default_retries(url, client_of, new_key):
    key = new_key("busy")
    client = client_of(key)
    beyond = 5
    refused = []
    log = lambda response: response.status_code == 429 and refused.append(response)
    client._client.event_hooks["response"].append(log)
    wait_until_seen(url, key)
    with ThreadPoolExecutor(REQUESTS + beyond) as pool:
        answers = list(pool.map(lambda _: ask(client), range(REQUESTS + beyond)))
    assert all(answer.usage.completion_tokens == 1 for answer in answers)
    assert refused, "the burst was within the limit"
    for response in refused:
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(response.headers["retry-after-ms"]) <= 60_000


def test_a_burst_beside_what_runs_gets_through_with_the_default_retries(url, client_of, new_key):
    key = new_key("double")
    client = client_of(key)
    refused = []
    client._client.event_hooks["response"].append(lambda response: refused.append(response.status_code == 429))
    wait_until_seen(url, key)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client, max_tokens=300), range(8)))
    assert all(answer.usage.completion_tokens for answer in answers)
    assert any(refused), "there was no burst"


def test_a_quota_that_is_spent_is_not_tried_again(url, client_of, new_key):
    client = client_of(new_key("poor"))
    seen = []
    client._client.event_hooks["response"].append(lambda response: seen.append(response.status_code))
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            ask(client, max_tokens=8)
        except openai.AuthenticationError:
            time.sleep(0.05)  # the key is new
        except openai.RateLimitError as error:
            assert error.code == "insufficient_quota"
            break
    assert seen.count(429) == 1


@pytest.mark.parametrize("language, code", examples(lambda code: re.search(r"retr(y|ies)\W+\d", code)))
def test_an_example_that_tries_again_gets_through(server, url, client_of, new_key, tmp_path, language, code):
    key = new_key("single")
    client = client_of(key, max_retries=1000)
    limited = 'realm_tenant_limited_total{tenant="single"} '

    def refused():
        metrics = requests.get(server["admin"] + "/metrics", timeout=TIMEOUT).text
        return next((float(line.removeprefix(limited)) for line in metrics.splitlines() if line.startswith(limited)), 0)

    # Its only place is taken, by a stream too long to end while nobody reads it, until the example has been refused.
    deadline = time.monotonic() + TIMEOUT
    while requests.get(url + "/models", headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with ask(client, stream=True, max_tokens=2000, n=16, extra_body={"ignore_eos": True}):
        before = refused()
        example = start(language, code, url, tmp_path, key)
        while refused() == before:
            assert example.poll() is None and time.monotonic() < deadline, example.communicate()
            time.sleep(0.05)
    assert does_what_it_says(example, code)
