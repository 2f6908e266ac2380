"""A steady load: requests of all kinds that come when they come, not when the server is ready for them."""

import random

import load
from load import KINDS, Scenario, arrive, ask

RATE = load.setting("RATE", 10.0)
SECONDS = load.setting("SECONDS", 60.0, short=3.0)
FIRST_P99_MS = load.setting("FIRST_P99_MS", 1000.0)
TOTAL_P99_MS = load.setting("TOTAL_P99_MS", 10000.0)


class Steady(Scenario):
    def play(self):
        answers = []
        arrive(RATE, SECONDS, lambda: answers.append(ask(*random.choice(KINDS))))
        answers = [answer for answer in answers if answer]
        load.at_least("answers", len(answers), 1)
        load.measured["tokens a second"] = round(sum(a.usage["completion_tokens"] for a in answers) / SECONDS, 1)
        firsts = [answer.first for answer in answers if answer.first]
        load.at_least("streams with a text", len(firsts), 1)
        if firsts and not load.SHORT:
            load.at_most("first token, p99, ms", load.percentile(firsts, 0.99) * 1000, FIRST_P99_MS)
            totals = [answer.seconds for answer in answers]
            load.at_most("whole answer, p99, ms", load.percentile(totals, 0.99) * 1000, TOTAL_P99_MS)
