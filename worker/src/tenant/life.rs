//! Whether anybody still waits for an instance.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

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

    /// Waits until `look` finds something for the instance; None once it is over.
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        poll_fn(|context| {
            if self.is_over_or_will_wake(context.waker()) {
                return Poll::Ready(None);
            }
            look().map_or(Poll::Pending, |found| Poll::Ready(Some(found)))
        })
        .await
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
