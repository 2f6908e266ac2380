//! A program that every tenant has without having stored it: `chat`, the yardstick of what being a program
//! costs. It answers as the model itself does, through the contract alone.

use std::sync::LazyLock;

use jiff::Timestamp;

use super::Kind;
use super::store::ProgramRecord;
use crate::digest::Digest;

/// `programs/examples/chat`. `cargo xtask programs --builtin` makes it anew.
pub(super) const CHAT: &[u8] = include_bytes!("chat.wasm");

/// Its record, as if somebody had stored it.
pub(super) fn chat() -> Option<&'static ProgramRecord> {
    static RECORD: LazyLock<Option<ProgramRecord>> = LazyLock::new(|| {
        Some(ProgramRecord {
            name: "chat".parse().ok()?,
            kind: Kind::Program,
            base: None,
            sha256: Digest::of(CHAT),
            bytes: CHAT.len() as u64,
            created: Timestamp::UNIX_EPOCH,
        })
    });
    RECORD.as_ref()
}
