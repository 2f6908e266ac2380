//! How many instances there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use realm_shared::wire::{Allotment, Fault};

use super::Failure;

/// Sequences that are steered and requests that are answered.
#[derive(Debug)]
pub(super) struct Seats {
    /// How many, by tenant.
    taken: Mutex<HashMap<u32, u32>>,
    /// Most of them in all.
    most: u32,
}

/// A place among those of a tenant.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    tenant: u32,
}

impl Seats {
    /// Places for so many.
    pub(super) fn new(most: u32) -> Seats {
        Seats {
            taken: Mutex::default(),
            most,
        }
    }

    /// Takes a place, if there is one for this tenant.
    pub(super) fn take(self: Arc<Self>, allotment: &Allotment) -> Result<Seat, Failure> {
        let tenant = allotment.tenant;
        let mut taken = self.lock();
        let most = allotment.instances;
        let all: u32 = taken.values().sum();
        let count = taken.get(&tenant).map_or(0, |count| *count);
        if count >= most {
            let message = format!("{most} instances of its tenant run already; try again later");
            return Err(Failure::new(Fault::Instances, message));
        }
        if all >= self.most {
            let message = format!(
                "{} instances run in this worker; try again later",
                self.most
            );
            return Err(Failure::new(Fault::Instances, message));
        }
        taken.insert(tenant, count + 1);
        drop(taken);
        Ok(Seat {
            seats: self,
            tenant,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}
