//! Grammars, and places in the texts that they describe: llguidance over the model's vocabulary, within
//! bounds that a tenant cannot leave.
//!
//! Which tokens may follow depends on a grammar and the tokens before and on nothing else, so a program
//! that starts anew on another worker finds the same.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{ParserFactory, TokenParser};
use realm_shared::grammar::Grammar;
use realm_shared::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::shortened;

/// What a grammar may cost. llguidance's own bounds let a mask take 100 ms and hold 300 MB; with these
/// the worst that was found is 10 ms and 40 MB, and the schemas of many large APIs still fit.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 1000,
    initial_lexer_fuel: 250_000,
    step_lexer_fuel: 20_000,
    step_max_items: 10_000,
    max_lexer_states: 10_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};
/// What may stand between two parts of JSON: a space or two, or a line break and what indents the next
/// line. Without a bound a model that cannot decide could go on with spaces for ever.
const SPACES: &str = r"[\x20\x09]{1,2}|\x20?\x0D?\x0A[\x20\x09]{0,32}";
/// Stack for llguidance, which calls itself as deep as a grammar's rules name each other. Only what is
/// used of it takes memory.
const STACK: usize = 64 << 20;
/// What is kept of a grammar, in bytes for each byte of its text.
const KEPT: usize = 64;
/// What is kept of a text, in bytes: for each of its bytes, and for each item of the parser.
const BYTE: usize = 128;
const ITEM: usize = 8;

/// Compiles grammars for one vocabulary.
pub(super) struct Grammars {
    factory: ParserFactory,
    /// Stands for the end of a text. It is a token of no vocabulary: which tokens end an answer is the
    /// request's matter.
    end: u32,
}

struct Words(TokTrie);

impl TokenizerEnv for Words {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    /// Then what must follow is not put into tokens by llguidance, which would go through it to its
    /// end, a million bytes if need be, within one call.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Grammars {
    /// For the vocabulary of this tokenizer.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Grammars, String> {
        let end = tokenizer.vocab_size();
        let word = |id| {
            let bytes = tokenizer.token_bytes(id);
            match tokenizer.is_special(id) {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat(),
                false => bytes,
            }
        };
        guarded(|| {
            let mut words: Vec<_> = (0..end).map(word).collect();
            words.push(Vec::new());
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
            let words: TokEnv = Arc::new(Words(trie));
            let mut factory = ParserFactory::new_simple(&words)?;
            *factory.limits_mut() = LIMITS;
            factory.quiet();
            Ok(Grammars { factory, end })
        })
    }

    /// At the beginning of a text. It may take some hundred milliseconds.
    pub(super) fn compile(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let kept = KEPT * grammar.text().len();
        let parser = guarded(|| {
            let grammar = match grammar {
                Grammar::JsonSchema(text) => {
                    let mut schema = serde_json::from_str(text)?;
                    bound_spaces(&mut schema);
                    TopLevelGrammar::from_json_schema(schema)
                }
                Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
                Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            };
            let mut parser = self.factory.create_parser(grammar)?;
            parser.start_without_prompt();
            Ok(parser)
        })?;
        Ok(Matcher {
            grammar: Arc::new(kept),
            parser,
            end: self.end,
            over: false,
            kept: Vec::new(),
        })
    }
}

/// Bounds the spaces of JSON, unless the schema says by itself what they are.
fn bound_spaces(schema: &mut Value) {
    let options = schema.as_object_mut().map(|schema| {
        let options = schema.entry("x-guidance").or_insert_with(|| json!({}));
        options.as_object_mut()
    });
    if let Some(Some(options)) = options
        && options.get("whitespace_flexible") != Some(&Value::Bool(false))
    {
        options.entry("whitespace_pattern").or_insert(SPACES.into());
    }
}

/// Whether what llguidance says of a grammar is that it costs more than it may.
pub(super) fn is_too_complex(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let words = ["too big", "too large", "too many", "fuel"];
    words.iter().any(|words| message.contains(words))
}

/// A place in a text.
#[expect(
    unreachable_pub,
    reason = "what is generated names it as if it were public"
)]
pub struct Matcher {
    parser: TokenParser,
    /// Stands for the end of a text in `parser`.
    end: u32,
    /// A token ended the text. The parser is not told.
    over: bool,
    /// What all at places in texts of one grammar have in common, beside the lexer: its bytes.
    grammar: Arc<usize>,
    /// Bytes kept up to each token so far.
    kept: Vec<usize>,
}

impl Matcher {
    /// Another one at the same place.
    pub(super) fn fork(&self) -> Matcher {
        Matcher {
            parser: self.parser.clone(),
            end: self.end,
            over: self.over,
            grammar: self.grammar.clone(),
            kept: self.kept.clone(),
        }
    }

    /// Another one at the same place, which has nothing in common with this. What one takes of its
    /// limits is nothing to the other, so that both do what they would do alone.
    pub(super) fn copy(&self) -> Matcher {
        Matcher {
            parser: self.parser.deep_clone(),
            grammar: Arc::new(*self.grammar),
            kept: self.kept.clone(),
            ..*self
        }
    }

    /// Tokens that may come next, as bits; `ends` where the text may be over.
    pub(super) fn mask(&mut self, ends: &[u32]) -> Result<Vec<u32>, String> {
        if self.over {
            return Ok(Vec::new());
        }
        let parser = &mut self.parser;
        let mut words = match parser.stopped() {
            true => Vec::new(),
            false => guarded(|| Ok(parser.compute_mask()?.as_slice().to_vec()))?,
        };
        let bit = |token: u32| (token as usize / 32, 1 << (token % 32));
        let (word, end) = bit(self.end);
        let complete = match words.get_mut(word) {
            Some(word) => {
                let before = *word;
                *word &= !end;
                *word != before
            }
            None => self.is_complete()?,
        };
        if complete {
            for (word, bit) in ends.iter().map(|token| bit(*token)) {
                if words.len() <= word {
                    words.resize(word + 1, 0);
                }
                words[word] |= bit;
            }
        }
        Ok(words)
    }

    /// Goes on by as many of these tokens as fit.
    pub(super) fn accept(&mut self, tokens: &[u32], ends: &[u32]) -> Result<u32, String> {
        let mut fit = 0;
        for token in tokens {
            let fits = match ends.contains(token) {
                _ if self.over => false,
                true => self.end()?,
                false => *token < self.end && self.consume(*token)?,
            };
            if !fits {
                break;
            }
            fit += 1;
        }
        Ok(fit)
    }

    /// Ends the text, if it may be over.
    fn end(&mut self) -> Result<bool, String> {
        self.over = self.is_complete()?;
        if self.over {
            self.keep(0);
        }
        Ok(self.over)
    }

    fn consume(&mut self, token: u32) -> Result<bool, String> {
        let parser = &mut self.parser;
        let items = guarded(|| {
            if !parser.validate_token(token)? {
                return Ok(None);
            }
            let before = parser.parser_stats().all_items;
            parser.consume_token(token)?;
            parser.check_stop()?;
            Ok(Some(parser.parser_stats().all_items.saturating_sub(before)))
        })?;
        if let Some(items) = items {
            let bytes = parser.token_env.tok_trie().token_len(token);
            self.keep(BYTE * (bytes + 1) + ITEM * items);
        }
        Ok(items.is_some())
    }

    /// Goes back by so many tokens, if there were so many.
    pub(super) fn rollback(&mut self, tokens: usize) -> Result<(), String> {
        let before = self.kept.len();
        let Some(left) = before.checked_sub(tokens) else {
            return Err(format!("`rollback` by {tokens} of {before} tokens"));
        };
        let of_text = match tokens {
            0 => 0,
            _ => tokens - usize::from(std::mem::take(&mut self.over)),
        };
        let parser = &mut self.parser;
        guarded(|| parser.rollback(of_text))?;
        self.kept.truncate(left);
        Ok(())
    }

    /// Whether the text may be over here.
    pub(super) fn is_complete(&mut self) -> Result<bool, String> {
        let parser = &mut self.parser;
        if parser.stopped() {
            // Any other reason is a dead end.
            return Ok(parser.stop_reason() == StopReason::NoExtension);
        }
        guarded(|| Ok(parser.is_accepting()))
    }

    /// Whether a mask was an error because no token of the vocabulary goes on with the text.
    pub(super) fn is_dead_end(&self) -> bool {
        self.parser.stop_reason() == StopReason::NoExtensionBias
    }

    /// A token takes so many bytes.
    fn keep(&mut self, bytes: usize) {
        self.kept.push(self.text_bytes() + bytes);
    }

    fn text_bytes(&self) -> usize {
        self.kept.last().copied().unwrap_or(0)
    }

    /// Estimates its memory, and that of its grammar, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.text_bytes() + *self.grammar + self.parser.parser.lexer_stats().num_bytes
    }

    /// That of it which no other place in a text of its grammar needs.
    pub(super) fn own_bytes(&self) -> usize {
        match Arc::strong_count(&self.grammar) {
            1 => self.bytes(),
            _ => self.text_bytes(),
        }
    }
}

/// Calls llguidance. A fault of its own is an error like any other; it is no reason for a worker to end.
fn guarded<T>(call: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    let call = || catch_unwind(AssertUnwindSafe(call));
    stacker::grow(STACK, call).map_err(|error| shortened(error.to_string()))
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
