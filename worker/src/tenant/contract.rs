//! What is generated from the contract, `shared/wit`.

use wasmtime::component::{HasSelf, Linker};

use super::answering::Run;
use super::guest::Guest;

/// The world of processors.
#[allow(missing_docs, unreachable_pub)]
pub(super) mod processor {
    wasmtime::component::bindgen!({
        path: "../shared/wit",
        world: "processor",
        imports: {
            "realm:program/grammars.[static]matcher.compile": async | trappable,
            "realm:program/grammars.[method]matcher.accept": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: {
            "realm:program/grammars.matcher": crate::tenant::grammar::Matcher,
        },
    });
}

/// The world of programs that answer requests. What it shares with processors is theirs.
#[allow(missing_docs, unreachable_pub)]
pub(super) mod program {
    wasmtime::component::bindgen!({
        path: "../shared/wit",
        world: "program",
        imports: {
            "realm:program/sequences.wait-any": async | trappable,
            "realm:program/sequences.[static]sequence.reopen": async | trappable,
            "realm:program/sequences.[method]sequence.ask-from": async | trappable,
            "realm:program/sequences.[method]sequence.take": async | trappable,
            "realm:program/sequences.[method]sequence.take-logits": async | trappable,
            "realm:program/sequences.[method]sequence.take-hidden": async | trappable,
            "realm:program/tensors.[method]tensor.read": async | trappable,
            "realm:program/tensors.[method]tensor.top": async | trappable,
            "realm:program/tensors.apply": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: {
            "realm:program/types": super::processor::realm::program::types,
            "realm:program/text": super::processor::realm::program::text,
            "realm:program/grammars": super::processor::realm::program::grammars,
            "realm:program/control": super::processor::realm::program::control,
            "realm:program/tensors.tensor": crate::tenant::tensors::Tensor,
            "realm:program/sequences.sequence": crate::tenant::sequences::Sequence,
        },
    });
}

/// What a processor exports, by which it is known for one.
pub(super) const STEERING: &str = "realm:program/steering@0.1.0";
/// The same of a program that answers requests.
pub(super) const ANSWERING: &str = "realm:program/answering@0.1.0";
/// What a component imports that compiles grammars.
pub(super) const GRAMMARS: &str = "realm:program/grammars@0.1.0";

/// Adds everything that a processor may import.
pub(super) fn offer_processor(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    processor::Processor::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| called(guest))
}

/// Adds everything that a program which answers requests may import.
pub(super) fn offer_program(linker: &mut Linker<Run>) -> wasmtime::Result<()> {
    use processor::realm::program::{control, grammars, text, types};
    use program::realm::program::{client, sequences, tensors};

    types::add_to_linker::<Run, HasSelf<Guest>>(linker, |run| called(&mut run.guest))?;
    text::add_to_linker::<Run, HasSelf<Guest>>(linker, |run| called(&mut run.guest))?;
    grammars::add_to_linker::<Run, HasSelf<Guest>>(linker, |run| called(&mut run.guest))?;
    control::add_to_linker::<Run, HasSelf<Guest>>(linker, |run| called(&mut run.guest))?;
    tensors::add_to_linker::<Run, HasSelf<Run>>(linker, |run| called(run))?;
    sequences::add_to_linker::<Run, HasSelf<Run>>(linker, |run| called(run))?;
    client::add_to_linker::<Run, HasSelf<Run>>(linker, |run| called(run))
}

/// What a call of the host works on: each begins here, and so does each drop of what code holds of the host.
fn called<T>(of: T) -> T {
    #[cfg(debug_assertions)]
    crate::crash::at_call();
    of
}
