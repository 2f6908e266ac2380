"""What long prompts do to a server, in two figures that a load of equal requests does not show.

    python loadtest/prompts.py URL MODEL [--prompt 4000] [--streams 7] [--prefix 2000]

1. While some streams run a long prompt comes in: the time between two tokens of the streams, before
   and while it is read.
2. A prompt that begins as an earlier one did: the time to its first token, against one that is new.

URL is that of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1. Prompts are token ids.
Needs nothing but Python.
"""

import argparse
import http.client
import json
import random
import threading
import time
import urllib.parse


def stream(url, model, prompt, tokens):
    """Times at which an answer's tokens came, in seconds from the request."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=600)
    body = dict(model=model, prompt=prompt, max_tokens=tokens, stream=True, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    connection.request("POST", f"{place.path}/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read().decode(errors='replace')}")
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            if chunk["choices"] and chunk["choices"][0]["finish_reason"] is None:
                yield time.perf_counter() - start
    connection.close()


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


def first_token(url, model, prompt):
    return next(stream(url, model, prompt, 2))


def long_prompt(url, model, words, prompt, streams, tokens):
    stop, all_times = threading.Event(), []

    def run():
        times = []
        all_times.append(times)
        start = time.perf_counter()
        try:
            for at in stream(url, model, words(64), tokens):
                times.append(start + at)
                if stop.is_set():
                    return
        finally:
            stop.set()

    threads = [threading.Thread(target=run) for _ in range(streams)]
    for thread in threads:
        thread.start()
    while len(all_times) < streams or min(map(len, all_times)) < 50:
        if stop.is_set():
            raise SystemExit("a stream ended early")
        time.sleep(0.05)
    begin = time.perf_counter()
    first = first_token(url, model, words(prompt))
    end = begin + first
    enough = [len(times) + 50 for times in all_times]
    while any(len(times) < count for times, count in zip(all_times, enough)):
        if stop.is_set():
            raise SystemExit("a stream ended before the prompt was read; give more --tokens")
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    gaps = [(later, 1e3 * (later - at)) for times in all_times for at, later in zip(times[20:], times[21:])]
    before = [gap for at, gap in gaps if at < begin]
    during = [gap for at, gap in gaps if begin <= at < end]
    after = [gap for at, gap in gaps if end + 0.5 < at]
    print(f"{streams} streams, ms between two tokens: p50, p99")
    for what, gaps in (("before", before), (f"while {prompt} tokens are read ({first:.1f} s)", during), ("after", after)):
        print(f"  {what}: {percentile(gaps, 50):.1f}, {percentile(gaps, 99):.1f}")
    # The streams go on meanwhile, and what is longer is slower by itself.
    median = (percentile(before, 50) + percentile(after, 50)) / 2
    print(f"  p99 while it is read: {percentile(during, 99) / median:.2f} of the p50 around it")


def prefix(url, model, words, length):
    cold, warm = [], []
    for _ in range(5):
        head = words(length)
        cold.append(first_token(url, model, head + words(16)))
        warm.append(first_token(url, model, head + words(16)))
    cold, warm = percentile(cold, 50), percentile(warm, 50)
    print(f"first token behind {length} tokens: new {1e3 * cold:.0f} ms, seen before {1e3 * warm:.1f} ms, {100 * warm / cold:.1f} %")


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("url")
    cli.add_argument("model")
    cli.add_argument("--prompt", type=int, default=4000)
    cli.add_argument("--streams", type=int, default=7)
    cli.add_argument("--tokens", type=int, default=2000, help="of each stream; more than come while the prompt is read")
    cli.add_argument("--prefix", type=int, default=2000)
    cli.add_argument("--vocabulary", type=int, default=2000, help="token ids are drawn from 256 up to this")
    args = cli.parse_args()

    def words(count):
        return [random.randrange(256, args.vocabulary) for _ in range(count)]

    long_prompt(args.url, args.model, words, args.prompt, args.streams, args.tokens)
    prefix(args.url, args.model, words, args.prefix)


if __name__ == "__main__":
    main()
