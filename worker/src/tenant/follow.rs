//! A grammar that steers a sequence: the text is followed in it token by token, and what may come next
//! is all that may be drawn.
//!
//! Nobody's code runs for that, but llguidance's work is like a processor's: done beside the forward
//! pass, in the lanes, in its tenant's turns.

use std::sync::Arc;

use realm_shared::grammar::Grammar;
use realm_shared::wire::Fault;

use super::grammar::{Matcher, is_too_complex};
use super::grammar_cache::GrammarCache;
use super::guest::{LEAST, processor_time};
use super::lanes::{slow_down, take_turns};
use super::mail::{Mail, Next};
use super::steering::{Allowed, Draw};
use super::{Failure, Vocabulary};

/// A text that is to be followed.
pub(super) struct Text {
    pub(super) tenant: u32,
    pub(super) grammar: Grammar,
    /// Tokens that it has already.
    pub(super) generated: Vec<u32>,
    /// Tokens that end it.
    pub(super) end_tokens: Vec<u32>,
    /// While it has fewer tokens than this, it is not ended by one of those.
    pub(super) min_tokens: u32,
    /// Most bytes that a place in it may take.
    pub(super) memory: usize,
}

/// Follows a text as long as its sequence lives. Whatever ends that early is what the sequence ends
/// with.
pub(super) async fn live(
    mail: Arc<Mail>,
    vocabulary: Arc<Vocabulary>,
    cache: Arc<GrammarCache>,
    text: Text,
) {
    if let Err(failure) = follow(&mail, &vocabulary, &cache, text).await {
        mail.answer(Next::Failed(failure));
    }
}

async fn follow(
    mail: &Mail,
    vocabulary: &Arc<Vocabulary>,
    cache: &GrammarCache,
    text: Text,
) -> Result<(), Failure> {
    vocabulary.prepare_grammars().await;
    mail.begin();
    let compiled = cache
        .compile(vocabulary, text.tenant, &text.grammar)
        .await?;
    let mut place = Place {
        matcher: compiled.map_err(refused)?,
        len: 0,
        is_slow: false,
        mail,
        text: &text,
    };
    let mut next = place.next().await?;
    // What may follow is asked for here too, where it is known what did: llguidance remembers what it
    // has found out, which is to be as much as in the text's earlier life.
    for token in &text.generated {
        place.accept(*token)?;
        next = place.next().await?;
        take_turns().await;
        if mail.life().is_over() {
            return Ok(());
        }
    }
    loop {
        mail.answer(next);
        let Some(accepted) = mail.accepted().await else {
            return Ok(());
        };
        for token in accepted {
            place.accept(token)?;
        }
        next = place.next().await?;
    }
}

/// A place in a text.
struct Place<'a> {
    matcher: Matcher,
    /// Tokens before it.
    len: u32,
    /// The last answer took longer than anything may in the fast lane.
    is_slow: bool,
    mail: &'a Mail,
    text: &'a Text,
}

impl Place<'_> {
    async fn next(&mut self) -> Result<Next, Failure> {
        if self.is_slow {
            slow_down().await;
        }
        self.mail.begin();
        let begun = processor_time();
        let next = self.look();
        self.is_slow = processor_time().saturating_sub(begun) > LEAST;
        next
    }

    fn look(&mut self) -> Result<Next, Failure> {
        let ends = match self.len < self.text.min_tokens {
            true => &[],
            false => &self.text.end_tokens[..],
        };
        let mask = match self.matcher.mask(ends) {
            Err(_) if self.matcher.is_dead_end() => return Err(dead_end()),
            mask => mask.map_err(refused)?,
        };
        let most = self.text.memory;
        if self.matcher.bytes() > most {
            let message = format!("it needs more than {most} bytes of memory");
            return Err(Failure::new(Fault::Memory, message));
        }
        if mask.iter().any(|word| *word != 0) {
            return Ok(Next::Draw(Arc::new(Draw {
                allowed: Allowed::Mask(mask),
                bias: Vec::new(),
                temperature: None,
            })));
        }
        match self.matcher.is_complete().map_err(refused)? {
            true => Ok(Next::Stop),
            false => Err(dead_end()),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), Failure> {
        let accepted = self.matcher.accept(&[token], &self.text.end_tokens);
        if accepted.map_err(refused)? == 0 {
            let message = format!("token {token} does not go on with the text");
            return Err(Failure::new(Fault::Plan, message));
        }
        self.len = self.len.saturating_add(1);
        Ok(())
    }
}

fn dead_end() -> Failure {
    let message = "no token of this model goes on with the text";
    Failure::new(Fault::Plan, message)
}

/// A grammar that cannot be used, here or at all.
fn refused(message: String) -> Failure {
    let fault = match is_too_complex(&message) {
        true => Fault::Memory,
        false => Fault::Error,
    };
    Failure::new(fault, message)
}
