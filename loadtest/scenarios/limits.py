"""Limits: what they promise, how refusals look, and that who waits as long as told is served.

LOAD_KEYS has keys that only this run uses, of tenants with limits to requests, tokens or both, per minute. What the
limits are, the answers themselves say (`x-ratelimit-limit-*`).
"""

import re
import time

import load
from load import KEYS, PATIENCE, Scenario, ask, together

# Short answers, so that even a slow server runs into its limits.
OUTPUT = 8
CLIENTS = load.setting("CLIENTS", 8)
SECONDS = load.setting("SECONDS", 90.0, short=5.0)
HEADERS = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
# As OpenAI writes it: 1m0.5s, 20ms.
DURATION = re.compile(r"(?=.)(\d+h)?(\d+m(?!s))?(\d+(\.\d+)?s)?(\d+(\.\d+)?ms)?")


class Limits(Scenario):
    def play(self):
        for key in KEYS:
            self.run_into(key)

    def run_into(self, key):
        self.begin_afresh(key)
        answers, start = [], time.perf_counter()

        def client(_):
            while True:
                answer = ask("completion", True, key=key, accept=(200, 429), output=OUTPUT)
                if answer is None:
                    return
                answers.append(answer)
                # However slow this machine is, it goes on until somebody is refused.
                over = time.perf_counter() - start > SECONDS and any(other.status == 429 for other in answers)
                hangs = time.perf_counter() - start > SECONDS + PATIENCE
                if over or hangs or answer.status == 429 and not self.wait(answer, start):
                    return

        together(CLIENTS, client)
        seconds = time.perf_counter() - start
        served = [answer for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status == 429]
        name = f"{key[:11]}…"
        load.measured[f"{name}: served, refused"] = [len(served), len(refused)]
        load.at_least(f"{name}: served", len(served), 1)
        load.at_least(f"{name}: refused", len(refused), 1)
        load.at_most(f"{name}: answers with wrong x-ratelimit headers", sum(map(wrong_headers, answers)), 0)
        load.at_most(f"{name}: refusals that say wrongly when to come again", sum(map(wrong_wait, refused)), 0)
        self.within(name, served, seconds)
        self.alone(name, key)

    def begin_afresh(self, key):
        """Waits until one request fits, if an earlier run has used the limit up."""
        answer = ask("completion", True, key=key, accept=(200, 429), output=OUTPUT)
        if answer and answer.status == 429:
            time.sleep(told(answer))

    def wait(self, answer, start):
        """Waits as the refusal says, unless that is longer than the run."""
        seconds = told(answer)
        if time.perf_counter() - start + seconds > SECONDS:
            return False
        time.sleep(seconds)
        return True

    def within(self, name, served, seconds):
        """More than a limit and what came back of it meanwhile cannot have been served."""
        if not served:
            return
        headers = served[0].headers
        if limit := int(headers.get("x-ratelimit-limit-requests", 0)):
            load.at_most(f"{name}: requests served", len(served), limit * (1 + seconds / 60))
        if limit := int(headers.get("x-ratelimit-limit-tokens", 0)):
            tokens = sum(answer.usage["total_tokens"] for answer in served)
            load.at_most(f"{name}: tokens served", tokens, limit * (1 + int(seconds / 60)))

    def alone(self, name, key):
        """Who is refused alone, and waits as long as told, is served then."""
        while (answer := ask("completion", True, key=key, accept=(200, 429), output=OUTPUT)) and answer.status == 200:
            pass
        if answer is None or told(answer) > SECONDS:
            return
        time.sleep(told(answer))
        again = ask("completion", True, key=key, accept=(200, 429), output=OUTPUT)
        load.at_least(f"{name}: served after waiting as told", int(again is not None and again.status == 200), 1)


def told(answer):
    """Seconds to wait: the exact ones, where there are any."""
    headers = answer.headers
    return int(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else int(headers["retry-after"])


def wrong_headers(answer):
    headers = answer.headers
    found = [name for name in HEADERS if name in headers]
    complete = [[name in headers for name in half] for half in (HEADERS[:3], HEADERS[3:])]
    right = (
        found
        and all(all(half) or not any(half) for half in complete)
        and all(DURATION.fullmatch(headers[name]) for name in found if "-reset-" in name)
        and all(
            0 <= int(headers[name.replace("limit-limit", "limit-remaining")]) <= int(headers[name])
            for name in found
            if "limit-limit" in name
        )
    )
    return not right


def wrong_wait(answer):
    headers = answer.headers
    seconds = headers.get("retry-after", "")
    right = seconds.isdigit() and 0 < int(seconds) <= 60 and answer.error.get("code") == "rate_limit_exceeded"
    # The two must not contradict each other: whole seconds are rounded up.
    if right and "retry-after-ms" in headers:
        right = int(seconds) - 1 <= int(headers["retry-after-ms"]) / 1000 <= int(seconds)
    return not right
