"""A mixed load for a long time, clients among it that go away: nothing may pile up."""

import random
import time

import gevent
import psutil

import load
from load import KINDS, Scenario, arrive, ask

RATE = load.setting("RATE", 10.0)
SECONDS = load.setting("SECONDS", 1800.0, short=4.0)
# The server's process, if it runs on this machine. Its workers are counted with it.
PID = load.setting("PID", 0)
GROWTH_MB = load.setting("GROWTH_MB", 16.0)


class Soak(Scenario):
    def play(self):
        resident, over = [], False

        def watch():
            server = psutil.Process(PID)
            while not over:
                family = [server, *server.children(recursive=True)]
                resident.append(sum(process.memory_info().rss for process in family) / 1e6)
                gevent.sleep(SECONDS / 100)

        watcher = gevent.spawn(watch) if PID else None
        start, answers = time.perf_counter(), []
        arrive(RATE, SECONDS, lambda: answers.append(self.send()))
        over = True
        load.measured["requests a second"] = round(len(answers) / (time.perf_counter() - start), 2)
        if watcher:
            watcher.get()
            # The first fifth is for what is taken once, such as KV blocks at their first use.
            settled, end = resident[len(resident) // 5], resident[-1]
            load.measured["resident memory at the start, settled and at the end, MB"] = [
                round(value, 1) for value in (resident[0], settled, end)
            ]
            if not load.SHORT:
                load.at_most("resident memory gained, MB", end - settled, GROWTH_MB)

    def send(self):
        if random.random() < 0.1:
            return ask("chat", True, leave_after=random.randrange(5))
        return ask(*random.choice(KINDS), output=random.randrange(1, 2 * load.OUTPUT))
