"""Tenants beside each other, the last of which floods. LOAD_KEYS has a key of each; the last is the flood's.

By turns all ask for the same, and the last one for LOAD_TIMES as much.
"""

import time

import load
from load import KEYS, Scenario, ask, together

SECONDS = load.setting("SECONDS", 30.0, short=2.0)
# So many of each, so that what else the machine does meets both alike.
TURNS = 6
TIMES = load.setting("TIMES", 10)
KEPT = load.setting("KEPT", 0.8)
JAIN = load.setting("JAIN", 0.9)


class Fairness(Scenario):
    def play(self):
        if len(KEYS) < 3:
            raise SystemExit("set LOAD_KEYS to the keys of three tenants or more, with commas between them")
        turns = [(self.phase(1), self.phase(TIMES)) for _ in range(TURNS)]
        alike, flooded = ([sum(counts) for counts in zip(*phases)] for phases in zip(*turns))
        load.measured["tokens of each, all alike"] = alike
        load.measured["tokens of each, beside the flood"] = flooded
        load.at_least("tokens of the tenant that had fewest", min(alike + flooded), 1)
        if 0 in alike + flooded:
            return
        kept = [after / before for before, after in zip(alike[:-1], flooded[:-1])]
        jain = sum(kept) ** 2 / (len(kept) * sum(part**2 for part in kept))
        load.measured["kept beside the flood, each but the last"] = [round(part, 2) for part in kept]
        if not load.SHORT:
            load.at_least("part that the steady ones keep", sum(kept) / len(kept), KEPT)
            load.at_least("Jain's index over what each keeps", jain, JAIN)

    def phase(self, times):
        """Tokens that each tenant got while its clients asked again when they had their answers."""
        clients = [*range(len(KEYS)), *[len(KEYS) - 1] * (times - 1)]
        counts, end = [0] * len(KEYS), time.perf_counter() + SECONDS / TURNS

        def client(number):
            tenant = clients[number]
            while True:
                answer = ask("completion", True, key=KEYS[tenant])
                counts[tenant] += answer.usage["total_tokens"] if answer else 0
                if time.perf_counter() >= end:
                    return

        together(len(clients), client)
        return counts
