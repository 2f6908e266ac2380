//! Whether anybody still waits for an instance.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Lasts as long as the sequence or request that an instance works for.
#[derive(Debug, Default)]
pub(super) struct Life {
    over: Arc<AtomicBool>,
    /// Of the instance's task, while it waits.
    waker: Mutex<Option<Waker>>,
}

impl Life {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// True once it is over.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        self.over.clone()
    }

    /// Ends it, and with it the instance.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// There is something for the instance.
    pub(super) fn wake(&self) {
        let waker = self.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether it is over. If not, the task is woken when it is, or when there is something: what it
    /// waits for, it is to look for after this.
    pub(super) fn is_over_or_will_wake(&self, waker: &Waker) -> bool {
        *self.lock() = Some(waker.clone());
        self.is_over()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
