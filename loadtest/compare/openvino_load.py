"""Load OpenVINO GenAI as `realm bench` loads a server, in its own process, without HTTP.

    python loadtest/compare/openvino_load.py export DIR IR       make its model of DIR
    python loadtest/compare/openvino_load.py run IR THREADS JOBS answer JOBS, a JSON list

A job is a dict of concurrency, requests, prompt and output; a line of JSON answers each.
"""

import json
import sys
import time

import numpy as np


def export(folder, out):
    from optimum.intel import OVModelForCausalLM

    OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, load_in_8bit=False).save_pretrained(out)


def decode_rate(requests, concurrency):
    """Tokens per second while all streams run: had their first token, and not yet their last."""
    events = []
    for times in requests:
        events += [(times[0], 2, 1, 0)] + [(at, 0, 0, 1) for at in times[1:]] + [(times[-1], 1, -1, 0)]
    running, full, tokens, before = 0, 0.0, 0, None
    for at, _, change, count in sorted(events):
        if running == concurrency:
            full += at - before
            tokens += count
        running += change
        before = at
    return tokens / full if full else None


def load(pipe, config, vocab, job, random):
    from openvino import Tensor

    waiting = [random.integers(256, vocab, (1, job["prompt"])) for _ in range(job["requests"])]
    config.max_new_tokens = job["output"]
    config.ignore_eos = True
    running, done, number, start = {}, [], 0, time.perf_counter()
    while waiting or running:
        while waiting and len(running) < job["concurrency"]:
            running[number] = (pipe.add_request(number, Tensor(waiting.pop()), config), time.perf_counter(), [])
            number += 1
        pipe.step()
        now = time.perf_counter()
        for key, (handle, _, times) in list(running.items()):
            while handle.can_read():
                for output in handle.read().values():
                    times += [now] * len(output.generated_ids)
            if len(times) >= job["output"]:
                done.append(running.pop(key))
    seconds = time.perf_counter() - start
    first = sorted(times[0] - sent for _, sent, times in done)
    return dict(
        concurrency=job["concurrency"], completed=len(done), failed=job["requests"] - len(done), seconds=seconds,
        prompt_tokens_per_second=job["prompt"] * len(done) / seconds,
        output_tokens_per_second=job["output"] * len(done) / seconds,
        decode_tokens_per_second=decode_rate([times for *_, times in done], job["concurrency"]),
        first_token=dict(p50=1e3 * first[(len(first) - 1) // 2]),
    )


def run(folder, threads, jobs):
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 3
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 64
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    # The hints that it is fastest with on two cores, in the precision that everybody here has.
    hints = dict(INFERENCE_PRECISION_HINT="bf16", INFERENCE_NUM_THREADS=threads)
    with open(f"{folder}/config.json") as file:
        vocab = json.load(file)["vocab_size"]
    pipe = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", hints)
    config, random = genai.GenerationConfig(), np.random.default_rng(0)
    load(pipe, config, vocab, dict(concurrency=4, requests=4, prompt=128, output=64), random)
    for job in jobs:
        print(json.dumps(load(pipe, config, vocab, job, random)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(*sys.argv[2:])
    else:
        run(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
