use serde_json::json;

use super::*;

fn take(request: Value) -> Result<Option<Form>, ApiError> {
    let mut fields = Fields::of(String::new(), request)?;
    let form = Form::take(&mut fields)?;
    fields.finish()?;
    Ok(form)
}

fn grammar(request: Value) -> Grammar {
    take(request).expect("valid").expect("a form").grammar
}

#[test]
fn what_asks_for_nothing_is_no_form() {
    for request in [
        json!({}),
        json!({"response_format": null, "structured_outputs": null}),
        json!({"response_format": {"type": "text"}}),
    ] {
        assert_eq!(take(request), Ok(None));
    }
}

#[test]
fn every_form_is_a_grammar() {
    let json = |text: &str| Grammar::JsonSchema(text.into());
    let outputs = |outputs: Value| {
        grammar(json!({"response_format": {"type": "text"}, "structured_outputs": outputs}))
    };
    // In the order in which it was given, as this is the order of an answer.
    let schema = json!({"type": "object", "properties": {"b": true, "a": true}});
    let text = r#"{"type":"object","properties":{"b":true,"a":true}}"#;
    assert_eq!(
        grammar(json!({"response_format": {"type": "json_object"}})),
        json(r#"{"type":"object"}"#)
    );
    let given =
        json!({"name": "x_-9", "schema": schema, "strict": true, "description": "of things"});
    let format = json!({"type": "json_schema", "json_schema": given});
    assert_eq!(grammar(json!({"response_format": format})), json(text));
    assert_eq!(outputs(json!({"json": schema})), json(text));
    assert_eq!(outputs(json!({"json": schema.to_string()})), json(text));
    assert_eq!(outputs(json!({"regex": "a+"})), Grammar::Regex("a+".into()));
    assert_eq!(
        outputs(json!({"grammar": "start: \"a\""})),
        Grammar::Lark("start: \"a\"".into())
    );
    assert_eq!(
        outputs(json!({"choice": ["yes", "no. <b> 2+2", "€\n"], "regex": null})),
        Grammar::Regex("(yes|no\\. <b> 2\\+2|€\n)".into())
    );
}

#[test]
fn what_is_wrong_is_named() {
    let format = |format: Value| json!({"response_format": format});
    let schema = |schema: Value| format(json!({"type": "json_schema", "json_schema": schema}));
    let outputs = |outputs: Value| json!({"structured_outputs": outputs});
    let long = "x".repeat(MAX_GRAMMAR + 1);
    for (request, message) in [
        (format(json!("json")), "Invalid type for 'response_format'"),
        (
            format(json!({})),
            "Missing required parameter: 'response_format.type'",
        ),
        (
            format(json!({"type": "xml"})),
            "Unsupported value for 'response_format.type'",
        ),
        (format(json!({"type": "text", "x": 1})), "response_format.x"),
        (
            format(json!({"type": "json_schema"})),
            "'response_format.json_schema'",
        ),
        (
            schema(json!({"schema": {}})),
            "'response_format.json_schema.name'",
        ),
        (
            schema(json!({"name": "a b", "schema": {}})),
            "'response_format.json_schema.name'",
        ),
        (
            schema(json!({"name": "a".repeat(65), "schema": {}})),
            "'response_format.json_schema.name'",
        ),
        (
            schema(json!({"name": "a"})),
            "'response_format.json_schema.schema'",
        ),
        (
            schema(json!({"name": "a", "schema": true})),
            "expected an object",
        ),
        (
            schema(json!({"name": "a", "schema": {}, "strict": 1})),
            "json_schema.strict'",
        ),
        (
            schema(json!({"name": "a", "schema": {"a": long}})),
            "at most 65536 bytes",
        ),
        (outputs(json!({})), "exactly one"),
        (outputs(json!({"regex": "a", "json": {}})), "exactly one"),
        (outputs(json!({"regex": 1})), "'structured_outputs.regex'"),
        (
            outputs(json!({"grammar": ["a"]})),
            "'structured_outputs.grammar'",
        ),
        (outputs(json!({"json": "{"})), "this is no JSON"),
        (outputs(json!({"json": "5"})), "expected an object"),
        (outputs(json!({"choice": "a"})), "an array of strings"),
        (outputs(json!({"choice": []})), "at least one string"),
        (
            outputs(json!({"choice": ["a", 1]})),
            "'structured_outputs.choice[1]'",
        ),
        (outputs(json!({"regex": long})), "at most 65536 bytes"),
        (
            outputs(json!({"regex": "a", "backend": "x"})),
            "structured_outputs.backend",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
            "one form",
        ),
    ] {
        let error = take(request.clone()).expect_err("refused");
        assert!(
            error.to_string().contains(message),
            "{error} of {request:.80}"
        );
        assert_eq!(error.status(), 400);
    }
}

#[test]
fn a_usual_processor_has_no_form_beside_it() {
    let form = take(json!({"structured_outputs": {"regex": "a"}}))
        .expect("valid")
        .expect("a form");
    let mut settings = TenantSettings::default();
    let steering = form.steering(&settings).expect("no processor");
    assert_eq!(&*steering.grammar, r#"{"regex":"a"}"#);
    settings.processor = Some("guard".parse().expect("a name"));
    let error = form.steering(&settings).expect_err("refused").to_string();
    assert!(
        error.contains("`guard`") && error.contains("structured_outputs"),
        "{error}"
    );
}
