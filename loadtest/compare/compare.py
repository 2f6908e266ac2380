"""Compare Realm with llama.cpp's server and OpenVINO GenAI on this machine's CPU.

    python loadtest/compare/compare.py [--work DIR] [--threads N] [--rounds N] [--shape 135m] [--streams 32]

All compute the same weights in bf16 with the same number of threads, one server after the other, in
rounds: what a machine gives may change from minute to minute. The tables show medians of the rounds.
Realm and llama.cpp are loaded over HTTP by `realm bench`; OpenVINO GenAI has no server in its
package, so it gets the same work in its own process, without that cost.

The first run sets up what is missing in --work: the peers (about 6 GB, built and converted in a
quarter of an hour on two cores) and the models. Needs cargo, a C++ compiler and network.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source package holds llama.cpp's sources, the server's too
STREAMS = dict(concurrency=[1, 8, 32], prompt=128, output=64)
PROMPT = dict(concurrency=[1], prompt=512, output=1)


def step(what, *command, **kwargs):
    print(f"compare: {what}", file=sys.stderr, flush=True)
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, **kwargs)


# --- setting up --------------------------------------------------------------


class Setup:
    """Everything that is needed, each made once."""

    def __init__(self, work):
        self.work = work
        self.python = work / "venv/bin/python"
        self.realm = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/realm"
        self.llama_server = work / "llama.cpp/bin/llama-server"
        work.mkdir(parents=True, exist_ok=True)

    def prepare(self, shapes):
        step("building Realm", "cargo", "xtask", "build", cwd=ROOT)
        if not (self.work / "venv/complete").exists():
            step("creating an environment for the peers", sys.executable, "-m", "venv", self.work / "venv")
            step("installing what they need", self.python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt")
            (self.work / "venv/complete").touch()
        if not self.llama_server.exists():
            self.build_llama_cpp()
        for shape in shapes:
            self.make_model(shape)

    def build_llama_cpp(self):
        sources = self.work / "llama.cpp-sources"
        sources.mkdir(exist_ok=True)
        env = dict(os.environ, PATH=f"{self.python.parent}:{os.environ['PATH']}")
        step("fetching llama.cpp", self.python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation",
             "--no-binary", ":all:", "-d", sources, LLAMA_CPP, env=env)
        [archive] = sources.glob("*.tar.gz")
        step("unpacking it", "tar", "xzf", archive, "-C", sources)
        [tree] = sources.glob("*/vendor/llama.cpp")
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
                   "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"]
        build = self.work / "llama.cpp"
        step("configuring it", "cmake", "-S", tree, "-B", build, "-G", "Ninja", *options, env=env)
        step("building its server", "cmake", "--build", build, "--target", "llama-server", env=env)

    def make_model(self, shape):
        folder = self.work / shape
        if not (folder / "tokenizer_config.json").exists():
            step(f"writing {shape}", self.python, HERE / "random_model.py", shape, folder)
        if not self.gguf(shape).exists():
            part = self.gguf(shape).with_suffix(".part")
            step(f"writing {shape} for llama.cpp", self.python, HERE / "write_gguf.py", folder, part)
            part.rename(self.gguf(shape))
        if not self.ir(shape).exists():
            part = self.ir(shape).with_suffix(".part")
            step(f"exporting {shape} for OpenVINO", self.python, HERE / "openvino_load.py", "export", folder, part)
            part.rename(self.ir(shape))

    def gguf(self, shape):
        return self.work / f"{shape}.gguf"

    def ir(self, shape):
        return self.work / f"{shape}.openvino"


# --- measuring ---------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(log, command, health):
    """A server, from when it is healthy until the block ends."""
    with open(log, "w") as out, subprocess.Popen([str(part) for part in command], stdout=out, stderr=out) as server:
        try:
            deadline = time.time() + 600
            while True:
                try:
                    urllib.request.urlopen(health, timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None or time.time() > deadline:
                        raise SystemExit(f"{command[0]} does not serve; see {log}")
                    time.sleep(0.2)
            yield
        finally:
            server.terminate()


def bench(setup, works, url, model):
    """The streams and the prompts of `realm bench`, as two lists of runs."""
    warm_up = [setup.realm, "bench", "--url", url, "--model", model, "--concurrency", 4, "--requests", 4, "--seed", 1]
    subprocess.run([str(part) for part in warm_up], check=True, stdout=subprocess.DEVNULL)
    runs = []
    for work in works:
        command = [setup.realm, "bench", "--url", url, "--model", model, "--json",
                   "--concurrency", ",".join(map(str, work["concurrency"])),
                   "--prompt", work["prompt"], "--output", work["output"]]
        if work is PROMPT:
            command += ["--requests", 6]
        shown = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
        runs.append(json.loads(shown.stdout)["runs"])
    return runs


def realm(setup, works, shape, threads):
    port, admin = free_port(), free_port()
    command = [setup.realm, "serve", "--model", f"{shape}={setup.work / shape}", "--threads", threads,
               "--port", port, "--admin-addr", f"127.0.0.1:{admin}", "--log", "warn"]
    with serving(setup.work / "realm.log", command, f"http://127.0.0.1:{admin}/ready"):
        return bench(setup, works, f"http://127.0.0.1:{port}/v1", shape)


def llama_cpp(setup, works, shape, threads):
    port = free_port()
    command = [setup.llama_server, "-m", setup.gguf(shape), "--alias", shape, "-np", 32, "-c", 32 * 640, "-t", threads,
               "-tb", threads, "--host", "127.0.0.1", "--port", port, "--no-webui", "--cache-ram", 0]
    with serving(setup.work / "llama.cpp.log", command, f"http://127.0.0.1:{port}/health"):
        return bench(setup, works, f"http://127.0.0.1:{port}/v1", shape)


def openvino(setup, works, shape, threads):
    runs = []
    for work in works:
        jobs = [dict(concurrency=n, requests=6 if work is PROMPT else 3 * n, prompt=work["prompt"], output=work["output"])
                for n in work["concurrency"]]
        command = [setup.python, HERE / "openvino_load.py", "run", setup.ir(shape), threads, json.dumps(jobs)]
        shown = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
        runs.append([json.loads(line) for line in shown.stdout.splitlines()])
    return runs


SERVERS = {"Realm": realm, "llama.cpp": llama_cpp, "OpenVINO": openvino}


def rows(runs):
    streams, prompts = runs
    for run in streams:
        yield f"decode, {run['concurrency']} streams", run["decode_tokens_per_second"]
    for run in streams:
        yield f"whole, {run['concurrency']} streams", run["output_tokens_per_second"]
    yield "prompts of 512, one at a time", prompts[0]["prompt_tokens_per_second"]


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, default=Path.home() / ".cache/realm/compare", help="where peers and models are kept")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--shape", action="append", choices=["135m", "1.1b"], help="both unless given")
    cli.add_argument("--streams", type=int, action="append", help="1, 8 and 32 unless given")
    cli.add_argument("--only", action="append", choices=SERVERS, help="all unless given")
    args = cli.parse_args()
    shapes, servers = args.shape or ["135m", "1.1b"], args.only or list(SERVERS)
    works = dict(STREAMS, concurrency=args.streams or STREAMS["concurrency"]), PROMPT
    setup = Setup(args.work.resolve())
    setup.prepare(shapes)
    for shape in shapes:
        table = {}
        for _ in range(args.rounds):
            for name in servers:
                print(f"compare: measuring {name} on {shape}", file=sys.stderr, flush=True)
                for row, value in rows(SERVERS[name](setup, works, shape, args.threads)):
                    if value:
                        table.setdefault(row, {}).setdefault(name, []).append(value)
                    print(f"compare: {row}: {value and round(value, 1)}", file=sys.stderr, flush=True)
        print(f"\n{shape}, bf16, {args.threads} threads, tok/s\n")
        print("| | " + " | ".join(servers) + " | Realm to the better peer |")
        print("|---|" + "---|" * (len(servers) + 1))
        for row, rounds in table.items():
            values = {name: statistics.median(rounds[name]) for name in rounds}
            peers = [value for name, value in values.items() if name != "Realm"]
            ratio = f"{values['Realm'] / max(peers):.2f}" if peers and values.get("Realm") else ""
            shown = (f"{values[name]:.1f}" if name in values else "–" for name in servers)
            print(f"| {row} | " + " | ".join(shown) + f" | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
