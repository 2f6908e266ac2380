"""Clients that go away: at once, in the middle of a stream, beside others that stay. Nothing may go on for those that
are gone, and nothing may happen to the others."""

import random

import load
from load import Scenario, ask, together

ROUNDS = load.setting("ROUNDS", 20, short=2)
CLIENTS = load.setting("CLIENTS", 16)
# Of requests that are left: so long that they would run for a while.
LONG = load.setting("LONG", 1000)
# Realm and vLLM go on behind the end of the text, so that every answer is as long.
FULL_LENGTH = {"ignore_eos": True} if load.ADMIN_URL else {}


class Disconnects(Scenario):
    def play(self):
        answers = []
        for _ in range(ROUNDS):
            answers += together(CLIENTS, self.client)
        left = sum(answer is not None and answer.left for answer in answers)
        self.read_some = sum(answer is not None and answer.left and answer.status == 200 for answer in answers)
        load.measured["clients that left"] = left
        load.at_least("clients that left", left, ROUNDS)
        load.at_least("requests answered after them", int(ask("chat", True) is not None), 1)

    def client(self, number):
        if number % 4 == 0:
            return ask("chat", True)
        if number % 4 == 1:
            return ask("completion", False, leave_after=0, output=LONG, **FULL_LENGTH)
        return ask("completion", True, leave_after=random.randrange(1, 20), output=LONG, **FULL_LENGTH)

    def at_rest(self, rose):
        # Some may be through before the server hears that their client has left, but not all.
        cancelled = rose["realm_sequences_cancelled_total"]
        load.measured["sequences cancelled"] = cancelled
        load.at_least("sequences cancelled", cancelled, 1)
        # A stream that was left in its middle was admitted; others may not have been.
        load.at_least("sequences admitted", rose["realm_sequences_admitted_total"], self.read_some)
