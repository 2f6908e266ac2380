"""A crowd that comes all at once between two calm times. Nothing may break; a server that is full may say so, and when
to come again."""

import load
from load import Scenario, arrive, ask

RATE = load.setting("RATE", 5.0)
TIMES = load.setting("TIMES", 20.0, short=10.0)
SECONDS = load.setting("SECONDS", 20.0, short=1.5)
RECOVERY = load.setting("RECOVERY", 3.0)
FULL = (429, 503)


class Spike(Scenario):
    def play(self):
        before, crowd, after = [self.phase(RATE * times) for times in (1, TIMES, 1)]
        refused = [answer for answer in before + crowd + after if answer.status != 200]
        load.measured["requests of the crowd"] = len(crowd)
        load.measured["refused"] = len(refused)
        load.at_most(
            "refusals that do not say when to come again",
            sum(not answer.headers.get("retry-after", "").isdigit() for answer in refused),
            0,
        )
        load.at_most("refusals outside of the crowd", sum(a.status != 200 for a in before + after), 0)
        for when, phase in (("before", before), ("in", crowd), ("after", after)):
            load.at_least(f"requests answered {when} the crowd", sum(a.status == 200 for a in phase), 1)
        firsts = [[answer.first for answer in phase if answer.first] for phase in (before, crowd, after)]
        if not all(firsts):
            return
        calm, busy, again = [load.percentile(values, 0.5) * 1000 for values in firsts]
        load.measured["first token before, in and after the crowd, p50, ms"] = [round(calm), round(busy), round(again)]
        if not load.SHORT:
            load.at_most("first token after the crowd, by that before", again / calm, RECOVERY)

    def phase(self, rate):
        answers = []
        arrive(rate, SECONDS, lambda: answers.append(ask("chat", True, accept=(200, *FULL))))
        return [answer for answer in answers if answer]
