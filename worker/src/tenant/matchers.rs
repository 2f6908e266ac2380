//! Places in texts in the hands of a tenant's code.

use realm_shared::grammar::{Grammar, MAX_GRAMMAR};
use realm_shared::wire::Fault;
use wasmtime::UpdateDeadline;
use wasmtime::component::Resource;

use super::Failure;
use super::contract::processor::realm::program::grammars::{Grammar as Given, Host, HostMatcher};
use super::grammar::Matcher;
use super::guest::{Guest, too_long};
use super::handles::hold;
use super::lanes::take_turns;

/// Tokens that a text goes on by before others have their turn, and memory and time are looked at.
const AT_ONCE: usize = 64;

impl Guest {
    fn add(&mut self, matcher: Matcher) -> wasmtime::Result<Resource<Matcher>> {
        let bytes = matcher.own_bytes();
        let handle = hold(&mut self.matchers, matcher, Fault::Handles, "matchers")?;
        self.meter.keep(0, bytes)?;
        Ok(handle)
    }

    /// Does something with a matcher, and counts what memory that takes.
    fn with<T>(
        &mut self,
        handle: &Resource<Matcher>,
        call: impl FnOnce(&mut Matcher, &[u32]) -> T,
    ) -> wasmtime::Result<T> {
        let matcher = self.matchers.get_mut(handle)?;
        let before = matcher.bytes();
        let result = call(matcher, &self.end_tokens);
        self.meter.keep(before, matcher.bytes())?;
        Ok(result)
    }
}

impl Host for Guest {}

impl HostMatcher for Guest {
    async fn compile(
        &mut self,
        grammar: Given,
    ) -> wasmtime::Result<Result<Resource<Matcher>, String>> {
        let grammar = match grammar {
            Given::JsonSchema(text) => Grammar::JsonSchema(text),
            Given::Regex(text) => Grammar::Regex(text),
            Given::Lark(text) => Grammar::Lark(text),
        };
        if grammar.text().len() > MAX_GRAMMAR {
            return Err(too_long(format!("a grammar has at most {MAX_GRAMMAR} bytes")).into());
        }
        let (grammars, vocabulary) = (self.grammars.clone(), self.vocabulary.clone());
        let compiled = grammars.compile(&vocabulary, self.tenant, &grammar).await?;
        match compiled {
            Ok(matcher) => Ok(Ok(self.add(matcher)?)),
            Err(message) => Ok(Err(message)),
        }
    }

    fn fork(&mut self, this: Resource<Matcher>) -> wasmtime::Result<Resource<Matcher>> {
        let fork = self.matchers.get(&this)?.fork();
        self.add(fork)
    }

    fn mask(&mut self, this: Resource<Matcher>) -> wasmtime::Result<Result<Vec<u32>, String>> {
        self.with(&this, |matcher, ends| matcher.mask(ends))
    }

    async fn accept(
        &mut self,
        this: Resource<Matcher>,
        tokens: Vec<u32>,
    ) -> wasmtime::Result<Result<u32, String>> {
        let mut fit = 0;
        for some in tokens.chunks(AT_ONCE) {
            match self.with(&this, |matcher, ends| matcher.accept(some, ends))? {
                Ok(more) => fit += more,
                Err(message) => return Ok(Err(message)),
            }
            if !(fit as usize).is_multiple_of(AT_ONCE) {
                break;
            }
            if let UpdateDeadline::Yield(_) = self.meter.tick()? {
                take_turns().await;
            }
        }
        Ok(Ok(fit))
    }

    fn rollback(&mut self, this: Resource<Matcher>, tokens: u32) -> wasmtime::Result<()> {
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        let done = self.with(&this, |matcher, _| matcher.rollback(tokens))?;
        Ok(done.map_err(|message| Failure::new(Fault::Plan, message))?)
    }

    fn complete(&mut self, this: Resource<Matcher>) -> wasmtime::Result<bool> {
        let complete = self.with(&this, |matcher, _| matcher.is_complete())?;
        // What cannot go on cannot be over.
        Ok(complete.unwrap_or(false))
    }

    fn drop(&mut self, this: Resource<Matcher>) -> wasmtime::Result<()> {
        let matcher = self.matchers.delete(this)?;
        Ok(self.meter.keep(matcher.own_bytes(), 0)?)
    }
}
