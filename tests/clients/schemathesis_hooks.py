"""Makes the requests that Schemathesis invents ones that the server has to work on, briefly.

A name made up for the model would end nearly all of them with 404, and without a bound an answer
goes on to the end of the model's context.
"""

import schemathesis

MODEL = "realm-tiny"
MOST_TOKENS = 16


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = MODEL
        name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
        most = body.get(name)
        # What cannot be valid stays as it is: that is what some requests are about.
        if most is None or isinstance(most, int) and most > MOST_TOKENS:
            body[name] = MOST_TOKENS
    return body


@schemathesis.serializer("application/wasm")
def component(context, value):
    return value if isinstance(value, bytes) else str(value).encode()
