"""What hostile programs take from others: the time between tokens of 31 streams, each of a tenant of its own, while one
more tenant's client has one attack after the other run, without a pause.

    python loadtest/attacks.py target/release/realm MODEL_DIR target/programs [--seconds 8]

Before and after each attack the other client is an honest one, which chats with the model. Ratios are to what is seen
then: to the times around each attack, and of all attacks to all of these. MODEL_DIR needs a chat template, such as random_model.py writes. Needs
nothing but Python.
"""

import argparse
import http.client
import json
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from prompts import percentile
from serving import serving

STREAMS, TOKENS = 31, 1000
# Each with how it is called; processors are told by what they are not: called as a model.
PROCESSORS = ["spin", "spin-start", "grow", "table-grow", "recurse", "trap", "trap-start", "many-args", "force-flood"]
PROCESSORS += ["bias-flood", "flood-log", "errors"]
SLOW = dict(processor=dict(name="slow", args=dict(loops=4_000_000)))
SCRIPT = {
    "giant tensors": [dict(tensor=[[2], [1, 2]]), dict(gather=[0, [0] * 4096]), dict(matmul=[1, 1])],
    "tensor flood": [dict(tensor=[[2], [1, 2]])] * 1025,
    "bad index": [dict(tensor=[[2], [1, 2]]), dict(gather=[0, [2]])],
}
PROGRAMS = ["answer-spin", "answer-flood", "answer-handles", "answer-leases", "answer-trap", "answer-impossible"]


def attacks():
    """What each is called, the component that it needs, and what its requests say."""
    for name in PROCESSORS:
        yield name, name, dict(model="m", processor=dict(name=name))
    yield "slow", "slow", dict(model="m") | SLOW
    for name in PROGRAMS:
        yield name, name, dict(model=name)
    for name, steps in SCRIPT.items():
        yield name, "program-script", dict(model="program-script", program=dict(args=steps))
    compiling = dict(lark='start: "a"', compile=100_000)
    yield "grammars", "answer-matchers", dict(model="answer-matchers", program=dict(args=compiling))


class Client:
    def __init__(self, port, key):
        self.port, self.headers = port, {"authorization": f"Bearer {key}"}

    def send(self, path, body, kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, body, self.headers | {"content-type": kind})
        return connection, connection.getresponse()

    def push(self, name, component):
        connection, response = self.send(f"/v1/programs?name={name}", component, "application/wasm")
        if response.status != 200:
            raise SystemExit(f"{name}: {response.status}: {response.read().decode()}")
        connection.close()

    def chat(self, more):
        body = dict(messages=[dict(role="user", content="hi")], max_tokens=64) | more
        connection, response = self.send("/v1/chat/completions", json.dumps(body))
        response.read()
        connection.close()
        return response.status


class Neighbours:
    """Streams without an end, and how long each waits for its next token."""

    def __init__(self, clients):
        self.gaps, self.stop, self.wrong = [], threading.Event(), []
        self.threads = [threading.Thread(target=self.run, args=each) for each in enumerate(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, seed, client):
        chance = random.Random(seed)
        # The first one ends early, so that they are of all lengths at any time.
        tokens = 1 + TOKENS * seed // STREAMS
        while not self.stop.is_set():
            prompt = [chance.randrange(300, 30000) for _ in range(16)]
            body = dict(model="m", prompt=prompt, max_tokens=tokens, ignore_eos=True, stream=True, temperature=0)
            tokens = TOKENS
            connection, response = client.send("/v1/completions", json.dumps(body))
            last = None
            for line in response:
                if self.stop.is_set():
                    break
                if line.startswith(b"data: {"):
                    if b'"error"' in line:
                        self.wrong.append(line)
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append(now - last)
                    last = now
            connection.close()

    def during(self, seconds, request):
        """The gaps of so many seconds, in which another client sends this again and again, and its answers by status."""
        answers = {}
        end = time.perf_counter() + seconds
        before = len(self.gaps)
        while time.perf_counter() < end:
            status = request()
            answers[status] = answers.get(status, 0) + 1
        return self.gaps[before:], answers


def key(realm, tenant, keys):
    command = [realm, "api-key", "generate", "--tenant", tenant, "--name", "load", "--file", keys]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(word for word in shown.split() if word.startswith("sk-"))


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("realm")
    cli.add_argument("model")
    cli.add_argument("programs", type=Path)
    cli.add_argument("--seconds", type=float, default=8)
    cli.add_argument("--only", nargs="*")
    args = cli.parse_args()
    chosen = [attack for attack in attacks() if not args.only or attack[0] in args.only]

    with tempfile.TemporaryDirectory() as directory:
        keys = str(Path(directory, "keys.json"))
        tenants = [*(f"neighbour-{number}" for number in range(STREAMS)), "attacker"]
        shown = [key(args.realm, tenant, keys) for tenant in tenants]
        with serving(args.realm, args.model, "--api-keys", keys, "--programs", directory) as port:
            *clients, attacker = [Client(port, each) for each in shown]
            for component in {component for _, component, _ in chosen}:
                attacker.push(component, (args.programs / f"{component}.wasm").read_bytes())
            neighbours = Neighbours(clients)
            try:
                # Until all of them run.
                neighbours.during(20, lambda: attacker.chat(dict(model="m")))
                rows = []
                for name, _, request in chosen:
                    honest = lambda: neighbours.during(args.seconds / 2, lambda: attacker.chat(dict(model="m")))[0]
                    before = honest()
                    gaps, answers = neighbours.during(args.seconds, lambda: attacker.chat(request))
                    rows.append((name, gaps, before + honest(), answers))
            finally:
                neighbours.stop.set()
                for thread in neighbours.threads:
                    thread.join()
    if neighbours.wrong:
        raise SystemExit(f"a neighbour failed: {neighbours.wrong[0].decode()}")
    rows.append(("all", sum((row[1] for row in rows), []), sum((row[2] for row in rows), []), {}))
    print("between two tokens of a neighbour, beside the attack and beside an honest client:")
    for name, *both, answers in rows:
        shown = []
        for percent in (50, 99):
            here, there = (percentile(gaps, percent) * 1e3 for gaps in both)
            shown.append(f"p{percent} {here:6.1f} to {there:6.1f} ms ({here / there:.2f})")
        told = ", ".join(f"{count} x {status}" for status, count in answers.items())
        print(f"{name:>18}: {', '.join(shown)}; {told}")


if __name__ == "__main__":
    main()
