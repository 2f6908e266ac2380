"""What programs cost and save: the same chats without and with one, over HTTP, in turn.

    python loadtest/programs.py target/release/realm MODEL_DIR target/programs [--rounds 5]

`chat` does what the model does without it, so its time for a token is the price of being a program. `grammar` keeps answers
to a JSON schema, and so does a request's own `response_format`. `contrastive` draws each token from the logits of two
sequences, which its rate counts as two tokens. Four answers to one prompt are drawn by `best-of`, by `n=4`, and by four
requests whose prompts share nothing. MODEL_DIR needs a chat template, such as random_model.py writes. Needs nothing but
Python.
"""

import argparse
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from serving import serving


# Of answers that do not end before their last token.
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}
BY_PROCESSOR = dict(processor=dict(name="grammar", args=dict(json_schema=SCHEMA)))
BY_ITSELF = dict(response_format=dict(type="json_schema", json_schema=dict(name="list", schema=SCHEMA)))


class Server:
    def __init__(self, port):
        self.port = port

    def post(self, path, body, kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, body, {"content-type": kind})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status}: {text}")
        return json.loads(text)

    def chat(self, prompt, tokens, **more):
        body = dict(model="m", messages=[dict(role="user", content=prompt)], max_tokens=tokens, temperature=1) | more
        answer = self.post("/v1/chat/completions", json.dumps(body))
        return answer["usage"]["completion_tokens"], [choice["message"]["content"] for choice in answer["choices"]]

    def all_at_once(self, requests):
        """Seconds for requests that are sent together, and the tokens of all."""
        tokens = []

        def ask(request):
            tokens.append(self.chat(**request)[0])

        threads = [threading.Thread(target=ask, args=(request,)) for request in requests]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        return took, sum(tokens)


def compare(rounds, ways):
    """Tokens in a second of each way, round by round; all ways in turn in each."""
    rates = {name: [] for name in ways}
    for round in range(rounds):
        for name, way in ways.items():
            rates[name].append(way(round))
    return rates


def show(title, rates):
    first = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(value / base for value, base in zip(values, first))
        print(f"{title:>12}  {name:<28} {statistics.median(values):8.1f} tok/s  {ratio:6.3f} of the first")


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("realm")
    cli.add_argument("model")
    cli.add_argument("programs", type=Path)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--tokens", type=int, default=128)
    cli.add_argument("--streams", type=int, nargs="*", default=[1, 32])
    cli.add_argument("--forms", action="store_true", help="only what keeps answers to a schema")
    args = cli.parse_args()
    chance = random.Random(1)

    def words(length):
        return "".join(chance.choice("abcdefghij ") for _ in range(length))

    with (
        tempfile.TemporaryDirectory() as directory,
        serving(args.realm, args.model, "--programs", directory) as port,
    ):
        server = Server(port)
        for name in ("chat", "best-of", "contrastive", "grammar"):
            component = (args.programs / f"{name}.wasm").read_bytes()
            server.post(f"/v1/programs?name={name}", component, "application/wasm")
        server.chat(words(100), 8)

        for seed in range(4):
            request = dict(prompt=words(100), tokens=args.tokens, seed=seed)
            if server.chat(**request) != server.chat(**request, model="chat"):
                raise SystemExit("a program answered otherwise than the model")

        for streams in args.streams:

            def way(model, **more):
                def run(_):
                    # No prompt is sent twice: it would be found in the prefix cache.
                    more_of = dict(tokens=args.tokens, model=model) | more
                    requests = [dict(prompt=words(100)) | more_of for _ in range(streams)]
                    took, tokens = server.all_at_once(requests)
                    return tokens / took

                return run

            ways = {
                "the model": way("m"),
                "chat": way("chat"),
                "contrastive": way("contrastive"),
                "the model again": way("m"),
            }
            if not args.forms:
                show(f"{streams} streams", compare(args.rounds, ways))
            # No answer is over before its last token, whatever model this is.
            ways = {
                "the model": way("m", ignore_eos=True),
                "`grammar`": way("m", ignore_eos=True, **BY_PROCESSOR),
                "`response_format`": way("m", ignore_eos=True, **BY_ITSELF),
                "the model again": way("m", ignore_eos=True),
            }
            show(f"{streams} streams", compare(args.rounds, ways))
        if args.forms:
            return

        def best_of(_):
            more = dict(model="best-of", program=dict(args=dict(n=4)))
            took, tokens = server.all_at_once([dict(prompt=words(1000), tokens=64, **more)])
            return tokens / took

        def choices(_):
            took, tokens = server.all_at_once([dict(prompt=words(1000), tokens=64, n=4)])
            return tokens / took

        def separate(_):
            took, tokens = server.all_at_once([dict(prompt=words(1000), tokens=64) for _ in range(4)])
            return tokens / took

        ways = {"four requests, nothing shared": separate, "n=4": choices, "best-of": best_of}
        show("four answers", compare(args.rounds, ways))


if __name__ == "__main__":
    main()
