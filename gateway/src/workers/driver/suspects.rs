//! What a worker may have died of: programs are found out, and are not run any more.

use std::sync::Arc;

use super::{Driver, plain};
use crate::batching::{FailReason, Instance, Loss, Priority, Sequence, Steering};
use crate::programs::{Kind, Program};

impl Driver {
    /// Fails the request of a program that a worker died of. Tells which program that was, or may have been, and
    /// the tokens that were computed for it, which may have been it instead.
    pub(super) fn convict(
        &mut self,
        loss: Loss,
        by_itself: bool,
    ) -> Option<(Arc<Program>, Option<Vec<u32>>)> {
        let run = self.runs.convicted(&loss, by_itself);
        let none_is_sent = self.runs.none_is_sent();
        if let Some((number, _)) = run {
            let (runs, mut hands) = self.hands();
            runs.fail(number, FailReason::WorkerCrashed, &mut hands);
        }
        let Some(convicted) = loss.convicted else {
            let (_, program) = run?;
            // It can be nothing else, if nothing was computed.
            return loss.in_flight.is_empty().then_some((program, None));
        };
        let program = match convicted.steering? {
            Steering::Instance(instance) if none_is_sent => instance.program,
            Steering::Lease(_) => run?.1,
            Steering::Instance(_) | Steering::Form(_) => return None,
        };
        Some((program, Some(convicted.tokens)))
    }

    /// Computes tokens before all else and without their program. If the worker lives, it was the program.
    pub(super) fn examine(&mut self, program: Arc<Program>, tokens: Vec<u32>) {
        let id = self.new_id();
        let submitted = self.scheduler.submit(Sequence {
            priority: Priority::High,
            ..plain(id, tokens.into())
        });
        match submitted {
            Ok(()) => {
                self.scheduler.suspect(id);
                self.examined.insert(id, program);
            }
            Err(refused) => {
                tracing::warn!(%refused, "what may have crashed a worker is not examined")
            }
        }
    }

    /// From now on a version of a program is not run any more.
    pub(super) fn put_in_quarantine(&mut self, program: &Program) {
        program.put_in_quarantine();
        self.fail_quarantined();
    }

    /// Fails what waits for programs that are not run any more.
    pub(super) fn fail_quarantined(&mut self) {
        let kind = Kind::Processor;
        let reason = FailReason::Quarantined { kind };
        let is_quarantined = |instance: &Instance| instance.program.is_quarantined();
        self.scheduler.fail_steered(is_quarantined, &reason);
        let (runs, mut hands) = self.hands();
        runs.fail_quarantined(&mut hands);
    }
}
