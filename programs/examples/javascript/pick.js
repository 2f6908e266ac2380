// The processor of `../choice`, in JavaScript: the answer is one of the request's choices.
// `{"name": "pick", "args": {"choices": ["yes", "no"]}}`

import { encode, endTokens } from "realm:program/text@0.1.0";

// Each sequence has an instance of its own, so that what it remembers may stand here.
const ends = new Set();
let open = [];
let length = 0;

// The interface `steering` of the contract.
export const steering = {
  start(request) {
    const choices = JSON.parse(request.args)?.choices;
    if (!Array.isArray(choices) || choices.length === 0) {
      throw "processor.args.choices: there must be at least one";
    }
    open = choices.map((choice) => [...encode(choice)]);
    if (open.some((choice) => choice.length === 0)) throw "processor.args.choices: a choice must not be empty";
    endTokens().forEach((token) => ends.add(token));
  },

  advance(accepted) {
    for (const token of accepted) {
      const left = open.filter((choice) => choice[length] === token);
      if (left.length === 0) return { tag: "stop" };
      open = left;
      length += 1;
    }
    const next = new Set(open.filter((choice) => choice.length > length).map((choice) => choice[length]));
    if (next.size === 0) return { tag: "stop" };
    if (open.some((choice) => choice.length === length)) ends.forEach((token) => next.add(token));
    if (next.size === 1) return { tag: "force", val: [...next] };
    const tokens = [...next].sort((a, b) => a - b);
    return { tag: "draw", val: { allowed: { tag: "tokens", val: tokens }, bias: [], temperature: undefined } };
  },
};
