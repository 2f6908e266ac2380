//! A crash on demand, for tests of what becomes of the others. Release builds do not have it.

use std::sync::LazyLock;

/// The token that the environment names.
static TOKEN: LazyLock<Option<u32>> =
    LazyLock::new(|| std::env::var("REALM_TEST_CRASH_TOKEN").ok()?.parse().ok());

/// Ends the process, as a bad access would, if the token that `REALM_TEST_CRASH_TOKEN` names is
/// among a step's inputs.
pub(crate) fn if_asked(inputs: &[u32]) {
    if TOKEN.is_some_and(|token| inputs.contains(&token)) {
        std::process::abort();
    }
}
