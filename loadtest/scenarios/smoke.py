"""Every kind of request once or a few times, and errors that have to be errors."""

import json

import load
from load import KINDS, Scenario, ask, get

ROUNDS = load.setting("ROUNDS", 3)


class Smoke(Scenario):
    def play(self):
        status, text = get(f"{load.URL}/models")
        names = [entry["id"] for entry in json.loads(text)["data"]] if status == 200 else []
        load.at_least("times that /models names the model", names.count(self.model), 1)
        for _ in range(ROUNDS):
            for kind, stream in KINDS:
                ask(kind, stream)
        unknown = ask("chat", False, model="no such model", accept=(404,))
        load.at_least("requests for an unknown model that were refused", int(unknown is not None), 1)
        malformed = ask("chat", False, messages="no list", accept=(400, 422))
        load.at_least("malformed requests that were refused", int(malformed is not None), 1)
        if load.ADMIN_URL:
            # OpenAI promises this as far as it can, Realm without a condition.
            texts = {ask("completion", stream, prompt="Once", seed=7, output=32).text for stream in (True, False)}
            load.at_most("answers to one seed", len(texts), 1)
