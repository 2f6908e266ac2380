//! Realm.
fn main() {}
