"""What all scenarios are made of: settings, a request whose answer is checked, arrivals, thresholds and the summary.

Settings come from the environment as LOAD_*; README.md lists them. A scenario is a class on top of `Scenario` with a
method `play`. It states what must hold by `at_most` and `at_least`; the run fails if any of that does not hold.
"""

import http.client
import itertools
import json
import os
import random
import re
import time
import traceback
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import gevent
from gevent.pool import Group
from locust import User, events, task
from locust.exception import StopUser

# Longest wait for a byte of an answer, and for a server to come to rest. Only a server that hangs gets there.
PATIENCE = 120


def setting(name, default, short=None):
    """LOAD_NAME of the environment, of its default's type. `short` is the default of a short run."""
    if SHORT and short is not None:
        default = short
    value = os.environ.get(f"LOAD_{name}")
    if value is None:
        return default
    try:
        return type(default)(value)
    except ValueError:
        raise SystemExit(
            f"LOAD_{name}={value} is not {'a whole number' if isinstance(default, int) else 'a number'}"
        ) from None


# A short run asks whether all is right, not whether it is fast: it states nothing about time.
SHORT = os.environ.get("LOAD_SHORT") == "1"
URL = setting("URL", "http://127.0.0.1:8080/v1").rstrip("/")
ADMIN_URL = setting("ADMIN_URL", "").rstrip("/")
KEYS = setting("KEYS", "none").split(",")
PROMPT = setting("PROMPT", 30)
OUTPUT = setting("OUTPUT", 48)
SUMMARY = setting("SUMMARY", "summary.json")

KINDS = list(itertools.product(("chat", "completion"), (True, False)))
PATHS = {"chat": "/chat/completions", "completion": "/completions"}
WORDS = "the a dog cat river house old small red green runs sees finds said and then because under over night".split()


class Wrong(Exception):
    """An answer that is not what the API promises."""


def require(holds, message):
    if not holds:
        raise Wrong(message)


@dataclass
class Answer:
    """What came back for a request."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    text: str = ""
    finish: str = ""
    usage: dict = field(default_factory=dict)
    error: dict = field(default_factory=dict)
    # Seconds from the request to the first text and to the end.
    first: float = 0.0
    seconds: float = 0.0
    # Whether the client went away before the end.
    left: bool = False


def ask(kind, stream, key=None, leave_after=None, accept=(200,), output=OUTPUT, prompt=None, **more):
    """Sends a request, checks its answer, and counts it in Locust's table.

    With `leave_after` the client goes away after so many events of the stream, with 0 without reading anything. Other
    statuses than those to accept are failures. Returns None if the request failed.
    """
    prompt = prompt or " ".join(random.choices(WORDS, k=PROMPT))
    body = {"model": Scenario.model, "max_tokens": output, "stream": stream}
    body |= {"messages": [{"role": "user", "content": prompt}]} if kind == "chat" else {"prompt": prompt}
    body |= more
    if stream:
        body["stream_options"] = {"include_usage": True}
    name = f"{kind}, {'streamed' if stream else 'whole'}"
    answer, wrong, start = Answer(), None, time.perf_counter()
    connection = connect(URL)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key or random.choice(KEYS)}"}
        connection.request("POST", urlsplit(URL).path + PATHS[kind], json.dumps(body), headers)
        if leave_after == 0:
            answer.left = True
        else:
            read(connection.getresponse(), answer, kind, body, accept, start, leave_after)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError, Wrong) as error:
        wrong = error
    finally:
        connection.close()
    answer.seconds = time.perf_counter() - start
    if answer.left:
        name += ", left"
    elif answer.status not in (0, 200):
        name += f", {answer.status}"
    count(name, answer.seconds, wrong)
    if wrong:
        return None
    if answer.first:
        count("first token", answer.first, kind="TIME")
        tokens = answer.usage.get("completion_tokens", 0)
        if tokens > 1:
            count("between tokens", (answer.seconds - answer.first) / (tokens - 1), kind="TIME")
    return answer


def read(response, answer, kind, body, accept, start, leave_after):
    answer.status = response.status
    answer.headers = {name.lower(): value for name, value in response.getheaders()}
    if response.status != 200 or response.status not in accept:
        text = response.read().decode()
        require(response.status in accept, f"status {response.status}: {text[:200]}")
        answer.error = json.loads(text)["error"]
        require(answer.error["message"] and answer.error["type"], f"an error without message or type: {text[:200]}")
        return
    if body["stream"]:
        chunks = read_stream(response, answer, start, leave_after)
        if answer.left:
            return
    else:
        chunks = [json.loads(response.read())]
    check(chunks, answer, kind, body)


def read_stream(response, answer, start, leave_after):
    require(answer.headers["content-type"].startswith("text/event-stream"), "a stream that is no text/event-stream")
    chunks, done = [], False
    for line in response:
        line = line.strip()
        if not line or line.startswith(b":"):
            continue
        require(line.startswith(b"data: "), f"a line that is no event: {line[:80]}")
        require(not done, "an event after data: [DONE]")
        if line == b"data: [DONE]":
            done = True
            continue
        chunk = json.loads(line[6:])
        require("error" not in chunk, f"an error within the stream: {line[6:200]}")
        chunks.append(chunk)
        if not answer.first and any(text_of(choice) for choice in chunk["choices"]):
            answer.first = time.perf_counter() - start
        if leave_after is not None and len(chunks) >= leave_after:
            answer.left = True
            return chunks
    require(done, "the stream ended without data: [DONE]")
    return chunks


def text_of(choice):
    message = choice.get("delta") or choice.get("message") or {}
    return choice.get("text") or message.get("content") or ""


def check(chunks, answer, kind, body):
    """Holds a whole answer, in one piece or many, against what the API promises."""
    require(len({chunk["id"] for chunk in chunks}) == 1, "chunks of different ids")
    wanted = {"chat": "chat.completion", "completion": "text_completion"}[kind]
    wanted += ".chunk" if kind == "chat" and body["stream"] else ""
    objects = {chunk["object"] for chunk in chunks}
    require(objects == {wanted}, f"object {objects} instead of {wanted}")
    ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    require(len(ends) == 1 and ends[0] in ("stop", "length"), f"finish reasons {ends} of one choice")
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    require(len(usages) == 1, f"{len(usages)} times usage")
    answer.text = "".join(text_of(choice) for chunk in chunks for choice in chunk["choices"])
    answer.finish, answer.usage = ends[0], usages[0]
    tokens, prompt = answer.usage["completion_tokens"], answer.usage["prompt_tokens"]
    require(answer.usage["total_tokens"] == prompt + tokens, f"usage that does not add up: {answer.usage}")
    require(prompt > 0 and 0 < tokens <= body["max_tokens"], f"usage beyond max_tokens: {answer.usage}")
    cut = tokens == body["max_tokens"]
    require(cut or answer.finish == "stop", f"finished by length after {tokens} of {body['max_tokens']} tokens")


def count(name, seconds, wrong=None, kind="POST"):
    events.request.fire(
        request_type=kind,
        name=name,
        response_time=seconds * 1000,
        response_length=0,
        exception=wrong,
        context={},
    )


def connect(url):
    place = urlsplit(url)
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(place.scheme)
    if kind is None or not place.netloc:
        raise SystemExit(f"{url} is no URL of a server: give one such as http://127.0.0.1:8080/v1")
    return kind(place.netloc, timeout=PATIENCE)


def get(url, key=None):
    """Status and text of a GET."""
    connection = connect(url)
    try:
        connection.request("GET", urlsplit(url).path, headers={"authorization": f"Bearer {key or KEYS[0]}"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(f"{url} cannot be read ({error}): is the server running?") from None
    finally:
        connection.close()


def first_model():
    """The first that the server names."""
    status, text = get(f"{URL}/models")
    if status != 200:
        raise SystemExit(f"{URL}/models answers {status}: set LOAD_URL and LOAD_KEYS, or LOAD_MODEL")
    return json.loads(text)["data"][0]["id"]


def arrive(rate, seconds, send):
    """Sends requests at random times, `rate` in a second on the average, whether or not there are answers yet.
    Returns once all are answered. The first comes at once."""
    group, now = Group(), time.perf_counter()
    due, end = now, now + seconds
    while due < end:
        gevent.sleep(max(0, due - time.perf_counter()))
        late.append(time.perf_counter() - due)
        group.spawn(send)
        due += random.expovariate(rate)
    group.join(raise_error=True)


# How far arrivals were behind: what is measured while they are is this program.
late = [0.0]


def together(count, send):
    """Runs `send(number)` so many times at once, and returns what they return."""
    group = Group()
    tasks = [group.spawn(send, number) for number in range(count)]
    group.join(raise_error=True)
    return [task.value for task in tasks]


def metrics():
    """Sums of Realm's metrics by name, over all labels; empty without LOAD_ADMIN_URL."""
    sums = {}
    if ADMIN_URL:
        for line in get(f"{ADMIN_URL}/metrics")[1].splitlines():
            if found := re.match(r"([\w:]+)(?:\{.*\})? (\S+)$", line):
                sums[found[1]] = sums.get(found[1], 0) + float(found[2])
        if missing := [name for name in BUSY if name not in sums]:
            raise SystemExit(f"{ADMIN_URL}/metrics has no {missing[0]}: set LOAD_ADMIN_URL to a Realm's admin listener")
    return sums


OVER = ("vllm:request_success_total", "realm_sequences_failed_total", "realm_sequences_cancelled_total")
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting", "realm_sequences_held", "vllm:kv_cache_usage_perc")


def comes_to_rest(before):
    """Sees by Realm's metrics that nothing is left of the requests, and that each sequence was ended once."""
    deadline = time.perf_counter() + PATIENCE
    while True:
        now = metrics()
        rose = {name: value - before.get(name, 0) for name, value in now.items()}
        busy = {name: now[name] for name in BUSY}
        lost = abs(rose["realm_sequences_admitted_total"] - sum(rose.get(name, 0) for name in OVER))
        if (lost == 0 and not any(busy.values())) or time.perf_counter() > deadline:
            break
        gevent.sleep(0.1)
    for name, value in busy.items():
        at_most(f"left at the end: {name}", value, 0)
    at_most("sequences that were not ended exactly once", lost, 0)
    at_most("sequences that failed", rose["realm_sequences_failed_total"], 0)
    at_most("workers that ended", rose.get("realm_worker_ends_total", 0), 0)
    return rose


began = time.perf_counter()
thresholds = []
# Figures of a scenario's own, for the summary.
measured = {}


def at_most(what, value, bound):
    threshold(what, value, "at most", bound, value <= bound)


def at_least(what, value, bound):
    threshold(what, value, "at least", bound, value >= bound)


def threshold(what, value, relation, bound, holds):
    thresholds.append({"what": what, "value": value, "is": relation, "bound": bound, "holds": holds})


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


class Scenario(User):
    """Locust's one user, which plays the scenario once and ends the run."""

    abstract = True
    fixed_count = 1
    # The one that is asked.
    model = setting("MODEL", "")

    def play(self):
        raise NotImplementedError

    def at_rest(self, rose):
        """What a scenario says of how the metrics rose, once the server is at rest."""

    @task
    def once(self):
        failed = None
        try:
            Scenario.model = Scenario.model or first_model()
            before = metrics()
            self.play()
            if ADMIN_URL:
                self.at_rest(comes_to_rest(before))
        except (Exception, SystemExit) as error:
            failed = error
            if isinstance(error, SystemExit):
                print(f"error: {error}")
            else:
                traceback.print_exc()
        at_most("errors of the scenario itself", int(failed is not None), 0)
        gevent.spawn(self.environment.runner.quit)
        raise StopUser


@events.quitting.add_listener
def judge(environment, **_):
    stats = environment.stats
    at_least("requests", sum(entry.num_requests for (_, kind), entry in stats.entries.items() if kind == "POST"), 1)
    at_most("failed requests", stats.total.num_failures, 0)
    environment.process_exit_code = int(not all(each["holds"] for each in thresholds))
    summary = {
        "scenario": environment.parsed_options.locustfile.rpartition("/")[2].removesuffix(".py"),
        "short": SHORT,
        "url": URL,
        "model": Scenario.model,
        "seconds": round(time.perf_counter() - began, 3),
        "passed": environment.process_exit_code == 0,
        "thresholds": thresholds,
        "requests": {
            name: {
                "count": entry.num_requests,
                "failed": entry.num_failures,
                **{f"p{percent}_ms": entry.get_response_time_percentile(percent / 100) for percent in (50, 95, 99)},
            }
            for (name, _), entry in sorted(stats.entries.items())
        },
        "failures": [error.to_dict() for error in stats.errors.values()],
        "arrivals_late_ms": round(max(late) * 1000, 1),
        "measured": measured,
    }
    with open(SUMMARY, "w") as file:
        json.dump(summary, file, indent=2)
        file.write("\n")


@events.quit.add_listener
def show(**_):
    for name, value in measured.items():
        print(f"{name}: {value}")
    for each in thresholds:
        word = "holds " if each["holds"] else "BROKEN"
        print(f"{word}  {each['what']}: {each['value']:g}, {each['is']} {each['bound']:g}")
    print(f"summary in {SUMMARY}", flush=True)
