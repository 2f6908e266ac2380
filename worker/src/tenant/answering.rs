//! The life of a program that answers a request.

use std::sync::Arc;

use realm_shared::run::{Finish, Message, Request, Role, What};
use realm_shared::wire::Fault;
use wasmtime::component::ResourceTable;

use super::Failure;
use super::guest::answering::exports::realm::program::answering as contract;
use super::guest::answering::realm::program::sequences::Sampling;
use super::guest::{self, Guest, ProgramPre};
use super::sequences::{Answerer, Desk, Voice};
use super::steering::error;

/// Handles that a program may have.
const HANDLES: usize = 256;

/// Says how a run ended, once it is gone: also where the host's own code breaks.
struct LastWord {
    voice: Arc<Voice>,
    what: What,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        let nothing = What::Finished(Finish::Stop);
        self.voice.say(std::mem::replace(&mut self.what, nothing));
    }
}

/// Answers a request, and says how that ended.
pub(super) async fn answer(
    engine: &wasmtime::Engine,
    code: Result<Arc<ProgramPre<Answerer>>, Failure>,
    guest: Guest,
    desk: Desk,
    request: Request,
) {
    let mut last = LastWord {
        voice: desk.voice.clone(),
        what: What::failed(Fault::Trap, "a fault of the worker"),
    };
    let ended = match code {
        Ok(code) => run(engine, &code, guest, desk, request).await,
        Err(failure) => Err(failure),
    };
    last.what = match ended {
        Ok(finish) => What::Finished(finish),
        Err(Failure { fault, message }) => What::failed(fault, message),
    };
}

/// Runs an instance to its end, and that of its sequences.
async fn run(
    engine: &wasmtime::Engine,
    code: &ProgramPre<Answerer>,
    guest: Guest,
    desk: Desk,
    request: Request,
) -> Result<Finish, Failure> {
    let request = told(request, &desk);
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES);
    let mut store = guest::store(
        engine,
        Answerer {
            guest,
            table,
            desk,
            speller: None,
        },
    );
    let said = async {
        let instance = code.instantiate_async(&mut store).await?;
        let answering = instance.realm_program_answering();
        answering.call_run(&mut store, &request).await
    };
    let finish = match said.await {
        Err(e) => return Err(guest::failure(&e)),
        Ok(Err(message)) => return Err(error(message)),
        Ok(Ok(contract::Finish::Stop)) => Finish::Stop,
        Ok(Ok(contract::Finish::Length)) => Finish::Length,
    };
    let answerer = store.data_mut();
    let rest = answerer.unspelled();
    answerer.desk.emit(rest)?;
    Ok(finish)
}

/// A request as the contract has it.
fn told(request: Request, desk: &Desk) -> contract::Request {
    let message = |Message { role, content }| contract::Message {
        role: match role {
            Role::System => contract::Role::System,
            Role::User => contract::Role::User,
            Role::Assistant => contract::Role::Assistant,
        },
        content,
    };
    let dials = request.dials;
    contract::Request {
        messages: request.messages.into_iter().map(message).collect(),
        prompt: request.prompt,
        args: request.args,
        sampling: Sampling {
            temperature: dials.temperature,
            top_p: dials.top_p,
            top_k: dials.top_k,
            min_p: dials.min_p,
        },
        max_tokens: request.max_tokens,
        vocabulary: desk.vocabulary,
        context: request.context,
    }
}
