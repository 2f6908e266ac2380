// A program that has the model fill in a form:
// `{"model": "fill", "program": {"args": {"form": "Name: {{[A-Z][a-z]{1,8}}}\nAge: {{[0-9]{1,2}}}\n"}}}`.
//
// Between double braces stands a regular expression that the model's words match; the rest is said as it
// is. The model reads the form as far as it is filled in, so that what it says fits what stands before it.

import { emit, emitTokens } from "realm:program/client@0.1.0";
import { Matcher } from "realm:program/grammars@0.1.0";
import { Sequence } from "realm:program/sequences@0.1.0";
import { encode, endTokens } from "realm:program/text@0.1.0";

// The interface `answering` of the contract. What it throws is the error that the request ends with.
export const answering = {
  run(request) {
    const sequence = new Sequence(request.prompt, request.sampling, undefined);
    const ends = endTokens();
    let left = request.maxTokens;
    for (const { text, pattern } of parts(JSON.parse(request.args)?.form)) {
      if (pattern === undefined) {
        emit(text);
        sequence.append(encode(text));
        continue;
      }
      const matcher = Matcher.compile({ tag: "regex", val: pattern });
      for (;;) {
        const mask = matcher.mask();
        if (mask.every((word) => word === 0)) break;
        if (left-- === 0) return "length";
        try {
          sequence.ask({ allowed: { tag: "mask", val: mask }, bias: [], temperature: undefined });
        } catch {
          // Its one error is that the context is full; what is wrong with a call traps.
          return "length";
        }
        const { token } = sequence.take();
        if (ends.includes(token)) {
          // It ends what was asked for here, not the form.
          sequence.truncate(sequence.length() - 1);
          break;
        }
        emitTokens([token]);
        matcher.accept([token]);
      }
      // There may be 64, and nobody knows when the garbage is collected.
      matcher[Symbol.dispose]();
    }
    return "stop";
  },
};

// Cuts a form into what is said as it is and what is to be filled in. The last two of more than two closing
// braces are those that end a pattern.
function parts(form) {
  if (typeof form !== "string") throw "program.args.form: a text is needed";
  const pieces = form.split(/\{\{(.*?)\}\}(?!\})/s);
  const parts = pieces.map((piece, index) => (index % 2 === 1 ? { pattern: piece } : { text: piece }));
  return parts.filter((part) => part.text !== "");
}
