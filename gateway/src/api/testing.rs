//! Events and sequences for the tests of this module.

use bytes::Bytes;
use realm_shared::wire::{MAX_STOP_IDS, Sampling};
use serde_json::Value;

use crate::batching::sequence::{
    Allowance, Event, Priority, Sequence, SequenceId, TenantId, TokenLogprobs,
};

/// Sampling that ends at token 264, with or without log-probabilities.
pub(crate) fn sampling(top_logprobs: i32, min_tokens: u32) -> Sampling {
    let mut stop_ids = [0; MAX_STOP_IDS];
    stop_ids[0] = 264;
    Sampling {
        min_tokens,
        top_logprobs,
        stop_count: 1,
        stop_ids,
        ..Sampling::default()
    }
}

pub(crate) fn sequence(prompt: &[u32], sampling: Sampling) -> Sequence {
    Sequence {
        id: SequenceId(0),
        tenant: TenantId::ANYONE,
        prompt: prompt.into(),
        max_tokens: 16,
        sampling,
        bias: [].into(),
        allowance: Allowance::default(),
        priority: Priority::default(),
        prompt_logprobs: false,
        steering: None,
    }
}

pub(crate) fn logprobs(logprob: f32, top: &[(u32, f32)]) -> TokenLogprobs {
    TokenLogprobs {
        logprob,
        top: top.to_vec(),
    }
}

/// A token with a log-probability of -0.5.
pub(crate) fn token(token: u32) -> Event {
    Event::Token {
        token,
        logprobs: Some(logprobs(-0.5, &[(token, -0.5)])),
    }
}

/// The `data:` of server-sent events, `[DONE]` as a string.
pub(crate) fn events(frames: &Bytes) -> Vec<Value> {
    let text = std::str::from_utf8(frames).expect("UTF-8");
    text.split_terminator("\n\n")
        .map(|frame| {
            let data = frame.strip_prefix("data: ").expect("one data line");
            serde_json::from_str(data).unwrap_or_else(|_| data.into())
        })
        .collect()
}
