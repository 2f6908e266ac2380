//! Falling asleep and waking the peer without losing a wake-up.
//!
//! The order on each side is the whole point; see the diagram in the crate's documentation.

use std::sync::atomic::Ordering::Relaxed;

use crate::layout::{ASLEEP, COUNTER};
use crate::ring::{Consumer, Violation};
use crate::words::{OwnWords, Words};

/// Announces sleep, then looks once more. True: the announcement stands and the caller may sleep
/// until it is woken. False: something arrived; the announcement is withdrawn.
pub(crate) fn announce(
    own: &impl OwnWords,
    peer: &impl Words,
    consumer: &mut Consumer,
) -> Result<bool, Violation> {
    own.store(ASLEEP, 1, Relaxed);
    // Either the producer's fence comes before this one and its head is seen below, or it comes
    // after and the producer sees the flag.
    own.fence();
    let ready = consumer.ready(peer);
    if !matches!(ready, Ok(false)) {
        withdraw(own);
    }
    ready.map(|ready| !ready)
}

/// Takes the announcement back.
pub(crate) fn withdraw(own: &impl OwnWords) {
    own.store(ASLEEP, 0, Relaxed);
}

/// Called after publishing: whether the peer sleeps and must be woken.
pub(crate) fn peer_sleeps(own: &impl OwnWords, peer: &impl Words) -> bool {
    own.fence();
    peer.load(ASLEEP, Relaxed) != 0
}

/// Sleeps on the peer's bell until it rings, if nothing has arrived. `wait(value)` sleeps only
/// while the bell still has `value`, as a futex does. May return without reason.
pub(crate) fn sleep(
    own: &impl OwnWords,
    peer: &impl Words,
    consumer: &mut Consumer,
    wait: impl FnOnce(u32),
) -> Result<(), Violation> {
    // Read before the last look at the ring: a ring of the bell after that look changes this value.
    let bell = peer.load(COUNTER, Relaxed) as u32;
    if announce(own, peer, consumer)? {
        wait(bell);
        withdraw(own);
    }
    Ok(())
}

/// Rings the bell of a peer that sleeps in [`sleep`]. `bell` is the value in `own`, of which this
/// side is the only writer; `wake` wakes who waits on it.
pub(crate) fn rouse(own: &impl OwnWords, peer: &impl Words, bell: &mut u32, wake: impl FnOnce()) {
    if peer_sleeps(own, peer) {
        *bell = bell.wrapping_add(1);
        own.store(COUNTER, u64::from(*bell), Relaxed);
        wake();
    }
}
