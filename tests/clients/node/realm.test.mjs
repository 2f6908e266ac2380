// Realm through the OpenAI SDK for Node.js. REALM_BASE_URL is the API with its /v1. Nothing here
// depends on what the model says, only on the form of its answers.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.REALM_BASE_URL,
  apiKey: "none",
  maxRetries: 0, // a retry would hide a failure
  timeout: 120_000,
});
const messages = [{ role: "user", content: "Tell me a story about a bird." }];
let model;

before(async () => {
  model = (await client.models.list()).data[0].id;
});

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

/** The text of each choice of a streamed chat completion. */
function texts(chunks) {
  const byIndex = [];
  for (const { index, delta } of chunks.flatMap((chunk) => chunk.choices)) {
    byIndex[index] = (byIndex[index] ?? "") + (delta.content ?? "");
  }
  return byIndex;
}

test("models", async () => {
  const found = await client.models.retrieve(model);
  assert.equal(found.id, model);
  assert.equal(found.object, "model");
});

test("a chat completion", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_completion_tokens: 8, ignore_eos: true });
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 8);
  assert.ok(answer._request_id);
});

test("a streamed chat completion", async () => {
  const request = { model, messages, max_tokens: 24, seed: 1 };
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await collect(stream);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.total_tokens, last.usage.prompt_tokens + last.usage.completion_tokens);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const end = chunks.at(-1).choices[0];
  assert.deepEqual(end.delta, {});
  assert.match(end.finish_reason, /^(stop|length)$/);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  const whole = await client.chat.completions.create(request);
  assert.deepEqual(texts(chunks), [whole.choices[0].message.content]);
});

test("the SDK's own stream accumulator", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 12, temperature: 0 });
  const said = [];
  runner.on("content", (delta) => said.push(delta));
  const final = await runner.finalChatCompletion();
  assert.equal(said.join(""), final.choices[0].message.content);
});

test("several seeded choices differ and repeat", async () => {
  const run = async () => {
    const stream = await client.chat.completions.create({
      model,
      messages,
      n: 3,
      seed: 7,
      temperature: 1.5,
      max_tokens: 24,
      stream: true,
    });
    return texts(await collect(stream));
  };
  const answers = await run();
  assert.equal(answers.length, 3);
  assert.ok(new Set(answers).size > 1);
  assert.deepEqual(await run(), answers);
});

test("completions with echo and log-probabilities", async () => {
  const answer = await client.completions.create({
    model,
    prompt: ["One day", "The sun"],
    echo: true,
    logprobs: 2,
    max_tokens: 4,
    temperature: 0,
  });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  assert.ok(answer.choices[0].text.startsWith("One day"));
  for (const { logprobs } of answer.choices) {
    assert.equal(logprobs.tokens.length, logprobs.token_logprobs.length);
    assert.equal(logprobs.token_logprobs[0], null);
  }
});

test("log-probabilities of a chat", async () => {
  const answer = await client.chat.completions.create({
    model,
    messages,
    logprobs: true,
    top_logprobs: 3,
    max_tokens: 6,
    ignore_eos: true,
  });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.length, 6);
  for (const entry of entries) {
    assert.equal(entry.top_logprobs.length, 3);
    assert.equal(new TextDecoder().decode(Uint8Array.from(entry.bytes)), entry.token);
  }
});

test("a stop string", async () => {
  const request = { model, messages, temperature: 0, max_tokens: 48 };
  const whole = (await client.chat.completions.create(request)).choices[0].message.content;
  const stop = whole.slice(5, 11);
  const stopped = await client.chat.completions.create({ ...request, stop });
  assert.equal(stopped.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
  assert.equal(stopped.choices[0].finish_reason, "stop");
});

test("an answer that fits a JSON schema", async () => {
  const schema = {
    type: "object",
    properties: { color: { enum: ["red", "green"] }, size: { type: "integer", minimum: 0, maximum: 9 } },
    required: ["color", "size"],
    additionalProperties: false,
  };
  const response_format = { type: "json_schema", json_schema: { name: "thing", strict: true, schema } };
  const answer = await client.chat.completions.parse({ model, messages, response_format, max_tokens: 600 });
  const { color, size } = answer.choices[0].message.parsed;
  assert.ok(["red", "green"].includes(color));
  assert.ok(Number.isInteger(size) && size >= 0 && size <= 9);
});

test("errors are the SDK's classes", async () => {
  const ask = (change) => client.chat.completions.create({ model, messages, ...change });
  await assert.rejects(ask({ model: "no-such" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  const bad = [
    [{ temperature: 9 }, "temperature"],
    [{ tools: [{ type: "function", function: { name: "f" } }] }, "tools"],
    [{ response_format: { type: "json_schema", json_schema: { name: "x", schema: { type: "thing" } } } }, "response_format"],
    [{ no_such_parameter: 1 }, "no_such_parameter"],
  ];
  for (const [change, param] of bad) {
    await assert.rejects(ask(change), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, param);
      assert.ok(error.code && error.requestID);
      return true;
    });
  }
});

test("a client that leaves harms nobody", async () => {
  for (let i = 0; i < 4; i++) {
    const stream = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 1500,
      ignore_eos: true,
      stream: true,
    });
    for await (const _ of stream) break;
    stream.controller.abort();
  }
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 4 });
  assert.equal(answer.choices.length, 1);
});

test("16 streams at once are what each is alone", async () => {
  const run = async (seed) => {
    const stream = await client.chat.completions.create({ model, messages, seed, max_tokens: 24, stream: true });
    return texts(await collect(stream))[0];
  };
  const seeds = [...Array(16).keys()];
  const together = await Promise.all(seeds.map(run));
  for (const seed of seeds) assert.equal(together[seed], await run(seed));
});
