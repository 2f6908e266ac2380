//! The OpenAI-compatible gateway of Realm.
