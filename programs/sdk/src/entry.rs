//! What [`processor!`](crate::processor) expands to calls: it keeps the instance's one processor.

use std::cell::RefCell;
use std::panic::PanicHookInfo;

pub use crate::bindings::answering::exports::realm::program::answering::Guest as Answering;
pub use crate::bindings::exports::realm::program::steering::Guest;
use crate::{Error, Plan, Processor, Request, Token, log, program};

/// Where an instance keeps its processor. An instance has one thread and serves one sequence.
pub type Cell<P> = RefCell<Option<P>>;

/// The functions that a component exports.
#[cfg(not(target_arch = "wasm32"))]
pub type Exports = (
    fn(Request) -> Result<(), String>,
    fn(Vec<Token>) -> Result<Plan, String>,
);

/// Before `start`.
#[must_use]
pub const fn empty<P>() -> Cell<P> {
    RefCell::new(None)
}

/// Begins the sequence.
pub fn start<P: Processor>(cell: &Cell<P>, request: Request) -> Result<(), String> {
    std::panic::set_hook(Box::new(log_panic));
    let processor = P::start(request).map_err(|error| error.0)?;
    cell.replace(Some(processor));
    Ok(())
}

/// Asks the processor for its plan.
pub fn advance<P: Processor>(cell: &Cell<P>, accepted: &[Token]) -> Result<Plan, String> {
    match cell.borrow_mut().as_mut() {
        Some(processor) => processor.advance(accepted).map_err(|error| error.0),
        None => Err("`advance` was called before `start`".into()),
    }
}

/// The function that a program exports.
#[cfg(not(target_arch = "wasm32"))]
pub type Answer = fn(program::Request) -> Result<program::Finish, String>;

/// Answers a request.
pub fn answer(
    answer: fn(program::Request) -> Result<program::Finish, Error>,
    request: program::Request,
) -> Result<program::Finish, String> {
    std::panic::set_hook(Box::new(log_panic));
    answer(request).map_err(|error| error.0)
}

/// A panic becomes a trap, of which a host can tell no more than that there was one.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    match panic.location() {
        Some(location) => log!("panicked at {location}: {message}"),
        None => log!("panicked: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Forces what it was given last.
    struct Echo(usize);

    impl Processor for Echo {
        fn start(request: Request) -> Result<Self, Error> {
            match request.choice {
                0 => Ok(Echo(0)),
                _ => Err("one choice only".into()),
            }
        }

        fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
            self.0 += accepted.len();
            match self.0 {
                0..3 => Ok(Plan::force(accepted)),
                _ => Err("no luck".into()),
            }
        }
    }

    fn request(choice: u32) -> Request {
        Request {
            prompt: Vec::new(),
            args: "null".into(),
            vocabulary: 8,
            choice,
        }
    }

    #[test]
    fn a_cell_serves_one_sequence() {
        let cell = empty::<Echo>();
        assert!(advance(&cell, &[]).unwrap_err().contains("before `start`"));
        assert_eq!(start(&cell, request(1)).unwrap_err(), "one choice only");
        assert!(advance(&cell, &[]).is_err());
        start(&cell, request(0)).unwrap();
        assert!(matches!(advance(&cell, &[4, 5]), Ok(Plan::Force(tokens)) if tokens == [4, 5]));
        assert_eq!(advance(&cell, &[6]).unwrap_err(), "no luck");
    }
}
