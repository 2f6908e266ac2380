//! What a tenant's code holds of the host, so many of each kind at once.

use realm_shared::wire::Fault;
use wasmtime::component::{Resource, ResourceTable, ResourceTableError};

use super::Failure;

/// For so many at most.
pub(super) fn table(most: usize) -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(most);
    table
}

/// Has the code hold one more of `what`. If it holds as many as it may, that is its `fault`.
pub(super) fn hold<T: Send + 'static>(
    table: &mut ResourceTable,
    resource: T,
    fault: Fault,
    what: &str,
) -> wasmtime::Result<Resource<T>> {
    table.push(resource).map_err(|e| match e {
        ResourceTableError::Full => {
            let most = table.max_capacity();
            let message = format!("it has more than {most} {what} at once");
            wasmtime::Error::new(Failure::new(fault, message))
        }
        e => e.into(),
    })
}
