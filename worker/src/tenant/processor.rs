//! A processor's instance.

use std::sync::Arc;

use realm_shared::wire::Fault;
use wasmtime::Store;

use super::Failure;
use super::contract::processor::exports::realm::program::steering::{Plan, Request};
use super::contract::processor::{Processor, ProcessorPre};
use super::guest::{self, Guest};
use super::lanes::take_turns;
use super::mail::{Mail, Next};
use super::plan::{drawable, known};

/// Most tokens that may be forced at once.
const MAX_FORCED: usize = 4096;

/// What an instance begins with.
pub(super) struct Beginning {
    pub(super) prompt: Vec<u32>,
    /// Tokens that it accepted in an earlier life, on another worker.
    pub(super) generated: Vec<u32>,
    pub(super) args: String,
    pub(super) vocabulary: u32,
    pub(super) choice: u32,
}

/// An instance's life. Whatever ends it early is what its sequence ends with.
pub(super) async fn live(
    mail: Arc<Mail>,
    code: Result<Arc<ProcessorPre<Guest>>, Failure>,
    store: Store<Guest>,
    beginning: Beginning,
) {
    let ended = match code {
        Ok(code) => converse(&mail, &code, store, beginning).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = ended {
        mail.answer(Next::Failed(failure));
    }
}

async fn converse(
    mail: &Mail,
    code: &ProcessorPre<Guest>,
    mut store: Store<Guest>,
    beginning: Beginning,
) -> Result<(), Failure> {
    let Beginning {
        prompt,
        generated,
        args,
        vocabulary,
        choice,
    } = beginning;
    guest::begin_call(&mut store);
    let instance = code.instantiate_async(&mut store).await;
    let mut instance = Instance {
        instance: instance.map_err(|e| guest::failure(&mut store, &e))?,
        mail,
        store,
        vocabulary,
    };
    instance
        .start(Request {
            prompt,
            args,
            vocabulary,
            choice,
        })
        .await?;
    let mut next = instance.advance(&[]).await?;
    // What was said before is said again, in the same portions.
    let mut rest = &generated[..];
    while !rest.is_empty() {
        let portion = match &mut next {
            Next::Draw(_) => 1,
            Next::Force(tokens, _) if tokens.len() <= rest.len() => tokens.len(),
            Next::Force(_, at) => {
                *at = rest.len();
                break;
            }
            Next::Unknown | Next::Stop | Next::Failed(_) => break,
        };
        let (accepted, after) = rest.split_at(portion);
        next = instance.advance(accepted).await?;
        rest = after;
        // They may be thousands of calls, each of them short.
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
        next = instance.advance(&accepted).await?;
    }
}

/// An instance with its store.
struct Instance<'a> {
    instance: Processor,
    mail: &'a Mail,
    store: Store<Guest>,
    vocabulary: u32,
}

impl Instance<'_> {
    fn begin_call(&mut self) {
        self.mail.begin();
        guest::begin_call(&mut self.store);
    }

    async fn start(&mut self, request: Request) -> Result<(), Failure> {
        self.begin_call();
        let steering = self.instance.realm_program_steering();
        let said = steering.call_start(&mut self.store, &request).await;
        said.map_err(|e| guest::failure(&mut self.store, &e))?
            .map_err(guest::error)
    }

    async fn advance(&mut self, accepted: &[u32]) -> Result<Next, Failure> {
        self.begin_call();
        let steering = self.instance.realm_program_steering();
        let said = steering.call_advance(&mut self.store, accepted).await;
        let plan = said
            .map_err(|e| guest::failure(&mut self.store, &e))?
            .map_err(guest::error)?;
        self.check(plan)
            .map_err(|message| Failure::new(Fault::Plan, message))
    }

    /// Takes a plan in that can be carried out.
    fn check(&self, plan: Plan) -> Result<Next, String> {
        match plan {
            Plan::Stop => Ok(Next::Stop),
            Plan::Force(tokens) => {
                if tokens.is_empty() || tokens.len() > MAX_FORCED {
                    let len = tokens.len();
                    return Err(format!("`force` has {len} tokens, not 1 to {MAX_FORCED}"));
                }
                tokens
                    .iter()
                    .try_for_each(|t| known("`force`", *t, self.vocabulary))?;
                Ok(Next::Force(tokens.into(), 0))
            }
            Plan::Draw(draw) => {
                drawable(&draw, self.vocabulary)?;
                Ok(Next::Draw(Arc::new(draw)))
            }
        }
    }
}
