"""What every test of the Python suite has at hand: clients of a running server.

REALM_BASE_URL is the API with its /v1, REALM_ADMIN_URL the admin listener, REALM_BINARY what serves
them. Nothing here depends on
what the model says, only on the form of its answers and on their being the same for the same seed.
"""

import os
import pathlib

import openai
import pytest
import requests

TIMEOUT = 120


@pytest.fixture(scope="session")
def base_url():
    return os.environ["REALM_BASE_URL"]


@pytest.fixture(scope="session")
def admin_url():
    return os.environ["REALM_ADMIN_URL"]


@pytest.fixture(scope="session")
def client(base_url):
    # Without retries, which would hide failures.
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT)


@pytest.fixture
async def async_client(base_url):
    async with openai.AsyncOpenAI(
        base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT
    ) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    """Asks for a chat completion of one user message."""

    def ask(content="Tell me a story about a dog.", **params):
        messages = params.pop("messages", [{"role": "user", "content": content}])
        return client.chat.completions.create(model=model, messages=messages, **params)

    return ask


@pytest.fixture(scope="session")
def complete(client, model):
    """Asks for a completion."""

    def ask(prompt="Once upon a time", **params):
        return client.completions.create(model=model, prompt=prompt, **params)

    return ask


@pytest.fixture(scope="session")
def vocabulary(complete):
    """Token ids by the text they stand for, of tokens that no other shares its text with.

    The server tells by repeating a prompt of those ids.
    """
    names = []
    for ids in (range(0, 1024), range(1024, 2048)):
        echo = complete(list(ids), echo=True, max_tokens=0, logprobs=0)
        names += echo.choices[0].logprobs.tokens
    assert len(names) == 2048
    return {name: i for i, name in enumerate(names) if names.count(name) == 1}


@pytest.fixture(scope="session")
def words(vocabulary):
    """Ids of tokens that are ordinary words, such as " and"."""
    ids = [i for name, i in vocabulary.items() if name[0] == " " and name[1:].isalpha()]
    assert len(ids) >= 16
    return ids


@pytest.fixture(scope="session")
def post(base_url):
    """Sends a body as it is, which the SDK would not, and returns the response."""

    def send(path, body=None, method="POST", **options):
        if isinstance(body, (dict, list)):
            options["json"] = body
        elif body is not None:
            options["data"] = body
            options.setdefault("headers", {"content-type": "application/json"})
        return requests.request(method, base_url + path, timeout=TIMEOUT, **options)

    return send


@pytest.fixture(scope="module")
def push(base_url):
    """Stores a component of target/programs under a name, for as long as the tests of a module run.

    `cargo xtask programs` makes the components; REALM_PROGRAMS says where they are.
    """
    names = []

    def store(component, name):
        path = pathlib.Path(os.environ["REALM_PROGRAMS"], f"{component}.wasm")
        pushed = requests.post(
            f"{base_url}/programs",
            params={"name": name},
            data=path.read_bytes(),
            headers={"content-type": "application/wasm"},
        )
        assert pushed.status_code == 200, pushed.text
        names.append(name)
        return pushed.json()

    yield store
    for name in names:
        assert requests.delete(f"{base_url}/programs/{name}").json()["deleted"]


def counts(usage):
    """A usage without what depends on earlier requests."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
