//! A processor that watches an answer for patterns:
//! `{"name": "guard", "args": {"patterns": ["secret"], "replacement": " [withheld]"}}`.
//!
//! At the first that appears the answer stops, after the replacement if there is one. A pattern is
//! a plain text, found in either case and wherever the tokens are cut. It is seen when it is
//! complete: a client that streams has it by then.

use realm_program::{Error, MOST_FORCED, Plan, Processor, Request, Token, processor, text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    patterns: Vec<String>,
    replacement: Option<String>,
}

struct Guard {
    decoder: text::Decoder,
    watch: Watch,
    /// What follows a pattern. It may be empty.
    replacement: Vec<Token>,
    /// A pattern appeared.
    alarmed: bool,
}

impl Processor for Guard {
    fn start(request: Request) -> Result<Self, Error> {
        let args: Args = request.args()?;
        let replacement = text::encode(args.replacement.as_deref().unwrap_or_default());
        if replacement.len() > MOST_FORCED {
            return Err(format!(
                "processor.args.replacement: {} tokens are too many; at most {MOST_FORCED} are allowed",
                replacement.len()
            )
            .into());
        }
        Ok(Guard {
            decoder: text::Decoder::default(),
            watch: Watch::new(&args.patterns)?,
            replacement,
            alarmed: false,
        })
    }

    fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
        if self.alarmed {
            // What was accepted is the replacement.
            return Ok(Plan::Stop);
        }
        let text = self.decoder.push(accepted);
        self.alarmed = self.watch.sees(&text);
        Ok(match self.alarmed {
            false => Plan::free(),
            true if self.replacement.is_empty() => Plan::Stop,
            true => Plan::force(std::mem::take(&mut self.replacement)),
        })
    }
}

/// Looks for patterns in a text that arrives in pieces.
struct Watch {
    /// In lower case.
    patterns: Vec<String>,
    /// The end of the text so far, in lower case: as much as may be the beginning of a pattern.
    tail: String,
}

impl Watch {
    fn new(patterns: &[String]) -> Result<Self, Error> {
        if patterns.is_empty() || patterns.iter().any(String::is_empty) {
            return Err("processor.args.patterns: there must be one, and none may be empty".into());
        }
        Ok(Watch {
            patterns: patterns.iter().map(|pattern| lower(pattern)).collect(),
            tail: String::new(),
        })
    }

    /// Whether a pattern appears in the text, now that it goes on with `piece`.
    fn sees(&mut self, piece: &str) -> bool {
        self.tail.push_str(&lower(piece));
        let seen = self
            .patterns
            .iter()
            .any(|pattern| self.tail.contains(pattern));
        let longest = self.patterns.iter().map(String::len).max().unwrap_or(1);
        let from = (self.tail.len() + 1).saturating_sub(longest);
        self.tail.drain(..self.tail.floor_char_boundary(from));
        seen
    }
}

/// Character by character: `str::to_lowercase` asks what stands around a sigma, and a piece of a
/// text cannot tell.
fn lower(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

processor!(Guard);

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(patterns: &[&str]) -> Watch {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.into()).collect();
        Watch::new(&patterns).unwrap()
    }

    #[test]
    fn a_pattern_is_seen_however_it_is_cut() {
        let text = "It is TOP secret, so hush";
        for size in 1..text.len() {
            let mut watch = watch(&["top Secret", "nothing of this"]);
            let mut so_far = String::new();
            for piece in text.as_bytes().chunks(size) {
                let piece = std::str::from_utf8(piece).unwrap();
                so_far.push_str(piece);
                if watch.sees(piece) {
                    break;
                }
            }
            assert!(
                so_far.contains("TOP secret"),
                "in pieces of {size}: {so_far}"
            );
            assert!(so_far.len() < "It is TOP secret".len() + size);
        }
    }

    #[test]
    fn any_alphabet_has_either_case_and_any_length() {
        for (pieces, last) in [
            (["STRA", "SSE Straß", "e"], 2),
            (["x ΟΔ", "ΌΣ", ""], 1),
            (["𝄞x𝄞", "𝄞", ""], 1),
            (["𝄞 𝄞", " 𝄞", "x"], 3),
        ] {
            let mut watch = watch(&["straße", "οδόσ", "𝄞𝄞"]);
            let seen = pieces.iter().position(|piece| watch.sees(piece));
            assert_eq!(seen.unwrap_or(3), last, "{pieces:?}");
        }
    }

    #[test]
    fn a_watch_keeps_no_more_than_it_needs() {
        let mut watch = watch(&["abc", "é"]);
        for _ in 0..100 {
            assert!(!watch.sees("ab 𝄞 ab"));
        }
        assert_eq!(watch.tail, "ab");
    }

    #[test]
    fn patterns_that_are_none_are_refused() {
        assert!(Watch::new(&[]).is_err());
        assert!(Watch::new(&["a".into(), String::new()]).is_err());
    }
}
