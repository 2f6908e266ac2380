// The examples of the documents in JavaScript, which are run as they stand; only the server's address is another.
// REALM_BASE_URL is the API with its /v1, REALM_DOCUMENTS the folder from which the documents' paths go.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { test } from "node:test";
import { promisify } from "node:util";

const ADDRESS = "http://127.0.0.1:8080/v1";
const URL = process.env.REALM_BASE_URL;

for (const path of ["README.md", "docs/clients.md"]) {
  const text = readFileSync(join(process.env.REALM_DOCUMENTS, path), "utf8");
  const found = [...text.matchAll(/^#+ ([^\n]+)$|^```js\n(.*?)^```$/gms)];
  let heading = "";
  for (const [, title, code] of found) {
    heading = title ?? heading;
    if (!code) continue;
    test(`${path}, ${heading}`, () => doesWhatItSays(code, URL));
    if (code.includes("maxRetries")) test(`${path}, ${heading}, refused at first`, () => triesAgain(code));
  }
  test(`${path} has examples`, () => assert.ok(found.some(([, , code]) => code)));
}

/** Sees that an example ends well, and prints what its comments promise. */
async function doesWhatItSays(code, url) {
  assert.ok(code.includes(ADDRESS), "an example of no server");
  const args = ["--input-type=module", "--eval", code.replaceAll(ADDRESS, url)];
  // Beside the packages, and without settings of this shell, such as proxies.
  const options = { cwd: import.meta.dirname, env: { PATH: process.env.PATH }, timeout: 120_000 };
  const { stdout } = await promisify(execFile)(process.execPath, args, options);
  assert.notEqual(stdout.trim(), "");
  for (const [, promised] of code.matchAll(/\/\/ prints (.+)$/gm)) {
    assert.ok(stdout.includes(promised), `${promised} is not in ${stdout}`);
  }
}

/** The same by way of a server which refuses the first request, as Realm does, and sends the next ones on to it. */
async function triesAgain(code) {
  let count = 0;
  const refusal = { error: { message: "Too many requests", type: "requests", param: null, code: "rate_limit_exceeded" } };
  const server = createServer(async (request, response) => {
    const body = await buffer(request);
    count += 1;
    if (count === 1) {
      const headers = { "content-type": "application/json", "retry-after": "1", "retry-after-ms": "20" };
      return response.writeHead(429, headers).end(JSON.stringify(refusal));
    }
    const headers = { "content-type": request.headers["content-type"] };
    const answer = await fetch(URL + request.url, { method: request.method, headers, body });
    response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") }).end(await answer.text());
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  try {
    await doesWhatItSays(code, `http://127.0.0.1:${server.address().port}`);
  } finally {
    server.close();
  }
  assert.ok(count > 1, "it was not tried again");
}
