"""What steady tenants keep when another one floods: over HTTP, each tenant with a key of its own.

    python loadtest/fairness.py target/release/realm MODEL_DIR [--steady 9] [--times 20] [--streams 1]

Runs a server twice for the same time: once all tenants ask for the same, once the last of them asks
for so many `--times` as much. Then prints, for the steady ones, the throughput and the time to the
first token of both runs, and Jain's index over what each of them kept.

With `--streams N` each tenant has N clients which send the next request when they have their answer;
with `--rate R` each sends R requests in a second on the average, whether or not there are answers.
Needs nothing but Python.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from prompts import percentile
from serving import serving

PROMPT, OUTPUT = 128, 64
THINKS = 0.2  # longest time that a client takes for its next request, in seconds


class Tenant:
    def __init__(self, name, key):
        self.name, self.key = name, key
        self.reset()

    def reset(self):
        self.tokens, self.first, self.refused = 0, [], 0

    def ask(self, port, model, words, counts):
        """Sends a request and counts what comes back while `counts` says so."""
        body = dict(model=model, prompt=words, max_tokens=OUTPUT, ignore_eos=True, stream=True, temperature=0)
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status == 429:
                response.read()
                self.refused += counts()
                return time.sleep(float(response.headers.get("retry-after", 1)))
            if response.status != 200:
                raise SystemExit(f"{response.status}: {response.read().decode(errors='replace')}")
            first = True
            for line in response:
                if line.startswith(b"data: {") and b'"finish_reason":null' in line and counts():
                    self.tokens += 1
                    if first:
                        self.first.append(time.perf_counter() - start)
                if line.startswith(b"data: {"):
                    first = False
        finally:
            connection.close()


def run(args, tenants, port, flood):
    """What each tenant had, with the last one asking for `flood` times as much. No prompt is sent twice: it would be
    found in the prefix cache."""
    stop, counting = threading.Event(), threading.Event()
    threads = []

    def words(chance):
        return [chance.randrange(300, 30000) % args.vocabulary for _ in range(PROMPT)]

    def start(work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        threads.append(thread)

    def client(tenant, seed):
        chance = random.Random(seed)
        while not stop.is_set():
            time.sleep(chance.uniform(0, THINKS))
            tenant.ask(port, "m", words(chance), counting.is_set)

    def arrivals(tenant, rate, seed):
        chance = random.Random(seed)
        while not stop.wait(chance.expovariate(rate)):
            start(tenant.ask, port, "m", words(chance), counting.is_set)

    for number, tenant in enumerate(tenants):
        tenant.reset()
        factor = flood if number == len(tenants) - 1 else 1
        if args.rate:
            start(arrivals, tenant, args.rate * factor, f"{flood} {number}")
        else:
            for stream in range(args.streams * factor):
                start(client, tenant, f"{flood} {number} {stream}")
    time.sleep(args.warm)
    counting.set()
    time.sleep(args.seconds)
    counting.clear()
    stop.set()
    for thread in list(threads):
        thread.join()
    return [(tenant.tokens / args.seconds, tenant.first, tenant.refused) for tenant in tenants]


def jain(values):
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("realm")
    parser.add_argument("model")
    parser.add_argument("--steady", type=int, default=9)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm", type=float, default=20)
    parser.add_argument("--vocabulary", type=int, default=30000)
    parser.epilog = "What stands behind -- are more arguments of `realm serve`."
    ours = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:ours])
    args.serve = sys.argv[ours + 1 :]

    with tempfile.TemporaryDirectory() as directory:
        keys = Path(directory, "keys.json")
        tenants = []
        for number in range(args.steady + 1):
            name = f"tenant-{number}"
            command = [args.realm, "api-key", "generate", "--tenant", name, "--name", "load", "--file", str(keys)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            key = next(word for word in shown.split() if word.startswith("sk-"))
            tenants.append(Tenant(name, key))
        with serving(args.realm, args.model, "--api-keys", str(keys), *args.serve) as port:
            equal = run(args, tenants, port, 1)
            flooded = run(args, tenants, port, args.times)

    for title, had in (("all the same", equal), (f"one {args.times} times", flooded)):
        steady = had[:-1]
        first = [value for _, values, _ in steady for value in values]
        print(
            f"{title:>14}: steady {sum(rate for rate, _, _ in steady):7.1f} tok/s, the other {had[-1][0]:7.1f};"
            f" first token p50 {percentile(first, 50):.3f} s, p99 {percentile(first, 99):.3f} s of {len(first)};"
            f" refused {sum(refused for _, _, refused in steady)}, the other {had[-1][2]}"
        )
    parts = [after / before for (after, _, _), (before, _, _) in zip(flooded[:-1], equal[:-1]) if before]
    first = [percentile([v for _, values, _ in had[:-1] for v in values], 99) for had in (equal, flooded)]
    kept = sum(rate for rate, _, _ in flooded[:-1]) / sum(rate for rate, _, _ in equal[:-1])
    print(f"kept {kept:.3f} of the throughput, Jain's index {jain(parts):.4f}, p99 of the first token {first[1] / first[0]:.2f} times")


if __name__ == "__main__":
    main()
