use serde_json::json;

use super::*;
use crate::text::testing::chat_text;

fn read(request: Value) -> Result<Params, ApiError> {
    let mut fields = Fields::of(String::new(), request)?;
    let params = Params::take(&mut fields, 1)?;
    fields.finish()?;
    Ok(params)
}

fn valid(request: Value) -> Params {
    read(request).expect("valid")
}

#[test]
fn defaults_are_openais_and_the_models() {
    let params = valid(json!({}));
    let mut text = chat_text();
    let sampling = params.sampling(&text);
    assert_eq!((sampling.temperature, sampling.top_p), (1.0, 1.0));
    assert_eq!((sampling.top_k, sampling.repetition_penalty), (0, 1.0));
    assert_eq!(sampling.top_logprobs, -1);
    assert_eq!((sampling.stop_count, sampling.stop_ids[0]), (1, 264));
    assert!(!params.stream && params.n == 1);
    assert_eq!(params.stream_usage, StreamUsage::Never);

    text.defaults.temperature = Some(0.6);
    text.defaults.top_k = Some(20);
    assert_eq!(params.sampling(&text).temperature, 0.6);
    assert_eq!(params.sampling(&text).top_k, 20);
    let params = valid(json!({"temperature": 0, "top_k": -1}));
    assert_eq!(params.sampling(&text).temperature, 0.0);
    assert_eq!(params.sampling(&text).top_k, 0);
}

#[test]
fn everything_that_is_honoured_reaches_the_sampling() {
    let params = valid(json!({
        "temperature": 2, "top_p": 1e-300, "min_p": 0.5, "top_k": 7, "presence_penalty": -2,
        "frequency_penalty": 2, "repetition_penalty": 1.5, "min_tokens": 3, "max_tokens": 4,
        "ignore_eos": true, "logit_bias": {"9": -100, "3": 1.5}, "seed": -1, "n": 128,
        "stop": vec!["a"; 16], "stream": true, "user": "u", "metadata": {"k": "v"},
        "stream_options": {"include_usage": true, "include_obfuscation": false},
        "safety_identifier": "s", "prompt_cache_key": "p",
    }));
    let sequence = params.sequence(&chat_text(), params.seed(), 2, [1].into(), 4);
    let s = sequence.sampling;
    assert_eq!(
        (s.temperature, s.top_p, s.min_p),
        (2.0, f32::MIN_POSITIVE, 0.5)
    );
    assert_eq!(
        (s.top_k, s.presence_penalty, s.frequency_penalty),
        (7, -2.0, 2.0)
    );
    assert_eq!(
        (s.repetition_penalty, s.min_tokens, s.stop_count),
        (1.5, 3, 0)
    );
    assert_eq!(s.key, random::key(u64::MAX, 2));
    assert_eq!(*sequence.bias, [(3, 1.5), (9, -100.0)]);
    assert_eq!(params.stop.len(), 16);
    assert_eq!((params.n, params.stream_usage), (128, StreamUsage::AtEnd));
    assert_eq!(params.check(10), Ok(()));
}

#[test]
fn null_is_the_same_as_absent() {
    let nulls = json!({
        "temperature": null, "top_p": null, "n": null, "stop": null, "seed": null, "stream": null,
        "stream_options": null, "logit_bias": null, "max_tokens": null, "user": null,
        "metadata": null, "top_k": null, "ignore_eos": null,
    });
    assert_eq!(valid(nulls), valid(json!({})));
}

#[test]
fn usage_throughout_needs_usage_at_the_end() {
    for (options, expected) in [
        (json!({}), StreamUsage::Never),
        (json!({"include_usage": true}), StreamUsage::AtEnd),
        (json!({"continuous_usage_stats": true}), StreamUsage::Never),
        (
            json!({"include_usage": true, "continuous_usage_stats": true}),
            StreamUsage::Throughout,
        ),
    ] {
        let params = valid(json!({"stream": true, "stream_options": options}));
        assert_eq!(params.stream_usage, expected, "{options}");
    }
}

#[test]
fn tiny_temperatures_are_greedy() {
    for t in [0.0, 1e-300, 1e-30, 1e-6] {
        assert_eq!(
            valid(json!({"temperature": t}))
                .sampling(&chat_text())
                .temperature,
            0.0
        );
    }
    assert_eq!(
        valid(json!({"temperature": 0.1}))
            .sampling(&chat_text())
            .temperature,
        0.1
    );
}

#[test]
fn requests_without_a_seed_differ_and_with_one_repeat() {
    let seeded = valid(json!({"seed": 5}));
    assert_eq!(seeded.seed(), seeded.seed());
    let free = valid(json!({}));
    assert_ne!(free.seed(), free.seed());
}

#[test]
fn every_fault_names_its_parameter_and_what_is_allowed() {
    let range = "Invalid 'temperature': expected a number from 0 to 2, but got";
    let long = "é".repeat(1025);
    let many: serde_json::Map<_, _> = (0..1025).map(|i| (i.to_string(), json!(0))).collect();
    let metadata = "Invalid 'metadata': expected at most 16 pairs of a key of up to 64 and a string of up to 512 characters.";
    for (request, expected) in [
        (json!({"temperature": 2.1}), format!("{range} 2.1.")),
        (json!({"temperature": -0.1}), format!("{range} -0.1.")),
        (json!({"temperature": 1e308}), format!("{range} 1e+308.")),
        (json!({"temperature": "1"}), "Invalid type for 'temperature': expected a number, but got a string.".into()),
        (json!({"top_p": 0}), "Invalid 'top_p': expected a number above 0 and up to 1, but got 0.".into()),
        (json!({"top_p": 1.1}), "Invalid 'top_p': expected a number above 0 and up to 1, but got 1.1.".into()),
        (json!({"min_p": -1}), "Invalid 'min_p': expected a number from 0 to 1, but got -1.".into()),
        (json!({"top_k": -2}), "Invalid 'top_k': expected an integer from -1 to 2147483647, but got -2.".into()),
        (json!({"n": 0}), "Invalid 'n': expected an integer from 1 to 128, but got 0.".into()),
        (json!({"n": 129}), "Invalid 'n': expected an integer from 1 to 128, but got 129.".into()),
        (json!({"n": true}), "Invalid type for 'n': expected an integer, but got a boolean.".into()),
        (json!({"max_tokens": 0}), "Invalid 'max_tokens': expected an integer from 1 to 2147483647, but got 0.".into()),
        (json!({"max_tokens": 4294967297i64}), "Invalid 'max_tokens': expected an integer from 1 to 2147483647, but got 4294967297.".into()),
        (json!({"min_tokens": -1}), "Invalid 'min_tokens': expected an integer from 0 to 2147483647, but got -1.".into()),
        (json!({"seed": 9223372036854775808u64}), "Invalid 'seed': expected an integer from -9223372036854775808 to 9223372036854775807, but got 9223372036854775808.".into()),
        (json!({"seed": 0.5}), "Invalid type for 'seed': expected an integer, but got a decimal.".into()),
        (json!({"presence_penalty": 3}), "Invalid 'presence_penalty': expected a number from -2 to 2, but got 3.".into()),
        (json!({"frequency_penalty": []}), "Invalid type for 'frequency_penalty': expected a number, but got an array.".into()),
        (json!({"repetition_penalty": 0}), "Invalid 'repetition_penalty': expected a number from 0.01 to 100, but got 0.".into()),
        (json!({"stop": ""}), "Invalid 'stop': expected a string of 1 to 1024 characters.".into()),
        (json!({"stop": ["a", ""]}), "Invalid 'stop[1]': expected a string of 1 to 1024 characters.".into()),
        (json!({"stop": long}), "Invalid 'stop': expected a string of 1 to 1024 characters.".into()),
        (json!({"stop": vec!["a"; 17]}), "Invalid 'stop': expected at most 16 strings, but got 17.".into()),
        (json!({"stop": [1]}), "Invalid type for 'stop[0]': expected a string, but got an integer.".into()),
        (json!({"stop": 1}), "Invalid type for 'stop': expected a string or an array of strings, but got an integer.".into()),
        (json!({"logit_bias": [1]}), "Invalid type for 'logit_bias': expected an object, but got an array.".into()),
        (json!({"logit_bias": {"a": 1}}), "Invalid 'logit_bias': expected token ids (such as \"42\") as keys.".into()),
        (json!({"logit_bias": {"01": 1}}), "Invalid 'logit_bias': expected token ids (such as \"42\") as keys.".into()),
        (json!({"logit_bias": {"1": 101}}), "Invalid 'logit_bias.1': expected a number from -100 to 100, but got 101.".into()),
        (json!({"logit_bias": {"1": "x"}}), "Invalid type for 'logit_bias.1': expected a number, but got a string.".into()),
        (json!({"logit_bias": many}), "Invalid 'logit_bias': expected at most 1024 entries, but got 1025.".into()),
        (json!({"stream": 1}), "Invalid type for 'stream': expected a boolean, but got an integer.".into()),
        (json!({"stream_options": true}), "Invalid type for 'stream_options': expected an object, but got a boolean.".into()),
        (json!({"stream_options": {"include_usage": 1}}), "Invalid type for 'stream_options.include_usage': expected a boolean, but got an integer.".into()),
        (json!({"stream_options": {"continuous_usage_stats": 1}}), "Invalid type for 'stream_options.continuous_usage_stats': expected a boolean, but got an integer.".into()),
        (json!({"stream_options": {"include_obfuscation": true}}), "Unsupported value for 'stream_options.include_obfuscation': this server accepts only null or false.".into()),
        (json!({"stream_options": {"x": 1}}), "Unrecognized request argument supplied: stream_options.x".into()),
        (json!({"user": 1}), "Invalid type for 'user': expected a string, but got an integer.".into()),
        (json!({"metadata": {"k": 1}}), metadata.into()),
        (json!({"metadata": {"k": "é".repeat(513)}}), metadata.into()),
        (json!({"ignore_eos": "yes"}), "Invalid type for 'ignore_eos': expected a boolean, but got a string.".into()),
        (json!({"temprature": 1}), "Unrecognized request argument supplied: temprature".into()),
    ] {
        let name = request.to_string();
        assert_eq!(read(request).expect_err(&name).to_string(), expected);
    }
}

#[test]
fn parameters_must_agree() {
    for (request, expected) in [
        (
            json!({"stream_options": {}}),
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        ),
        (
            json!({"logit_bias": {"9": 1, "10": 1}}),
            "Invalid 'logit_bias': expected token ids below 10, but got 10.",
        ),
    ] {
        assert_eq!(valid(request).check(10).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_budget_is_what_the_context_leaves() {
    let none = valid(json!({}));
    assert_eq!(none.budget("prompt", 10, 64, 16), Ok(16));
    assert_eq!(none.budget("prompt", 60, 64, 16), Ok(4));
    assert_eq!(none.budget("messages", 10, 64, u32::MAX), Ok(54));
    let message = |p: &Params, prompt| {
        p.budget("messages", prompt, 64, 16)
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(&none, 64)
            .contains("you requested 65 tokens (64 in the messages, 1 in the completion)")
    );
    let ten = valid(json!({"max_tokens": 10}));
    assert_eq!(ten.budget("prompt", 54, 64, 16), Ok(10));
    assert!(
        message(&ten, 55)
            .contains("you requested 65 tokens (55 in the messages, 10 in the completion)")
    );
    let least = valid(json!({"min_tokens": 20}));
    assert_eq!(least.budget("prompt", 10, 64, 16), Ok(20));
    assert_eq!(least.budget("prompt", 50, 64, 16), Ok(14));
}

#[test]
fn a_form_stands_beside_no_program() {
    let form = json!({"response_format": {"type": "json_object"}});
    assert_eq!(valid(form.clone()).check(10), Ok(()));
    let refused = |error: Result<(), ApiError>| {
        let error: Value = serde_json::from_slice(&error.unwrap_err().to_json()).expect("JSON");
        assert_eq!(error["error"]["param"], "response_format");
    };
    refused(valid(form.clone()).check_for_program());
    let mut both = form;
    both["processor"] = json!({"name": "guard"});
    refused(valid(both).check(10));
    assert_eq!(valid(json!({})).check_for_program(), Ok(()));
}
