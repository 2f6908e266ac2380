//! Reading a JSON object field by field, so that every fault can name its parameter.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of an object that were not read yet. `null` counts as left out, as in the OpenAI
/// SDKs; of a key given twice the last value counts, as in Python.
#[derive(Debug)]
pub(super) struct Fields {
    /// Where the object is, such as `messages[1]`; empty for the request itself.
    at: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a request body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields {
                at: String::new(),
                map,
            }),
            Ok(_) => Err(ApiError::malformed(
                "The request body must be a JSON object",
            )),
            Err(e) => Err(ApiError::malformed(format!(
                "The request body is not valid JSON: {e}"
            ))),
        }
    }

    /// Reads an object inside a request; `at` is its path.
    pub(super) fn of(at: String, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { at, map }),
            other => Err(ApiError::wrong_type(at, "an object", &other)),
        }
    }

    /// The full path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        if self.at.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.at)
        }
    }

    /// Takes a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Takes a field out that must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name)
            .ok_or_else(|| ApiError::missing(self.path(name)))
    }

    /// Takes out a boolean.
    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(ApiError::wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    /// Takes out a string.
    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(ApiError::wrong_type(self.path(name), "a string", &other)),
        }
    }

    /// Takes out an object.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let at = self.path(name);
        self.take(name)
            .map(|value| Fields::of(at, value))
            .transpose()
    }

    /// Takes out a whole number in `range`. As in JSON Schema, `2.0` is one.
    pub(super) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let whole = value.as_f64().is_some_and(|v| v.fract() == 0.0);
        if !whole {
            return Err(ApiError::wrong_type(self.path(name), "an integer", &value));
        }
        as_integer(&value)
            .filter(|v| range.contains(v))
            .map(Some)
            .ok_or_else(|| {
                let (low, high) = range.into_inner();
                ApiError::invalid(
                    self.path(name),
                    format!("an integer from {low} to {high}, but got {value}"),
                )
            })
    }

    /// Takes out a number for which `allowed` holds; `expected` says so in words.
    pub(super) fn number(
        &mut self,
        name: &str,
        expected: &str,
        allowed: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .ok_or_else(|| ApiError::wrong_type(self.path(name), "a number", &value))?;
        if !allowed(number) {
            return Err(ApiError::invalid(
                self.path(name),
                format!("{expected}, but got {value}"),
            ));
        }
        Ok(Some(number))
    }

    /// What is left, in the order given.
    pub(super) fn into_rest(self) -> Map<String, Value> {
        self.map
    }

    /// Refuses what was not read.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::unknown(self.path(name))),
        }
    }
}

/// A whole number, also one written with a decimal point or an exponent.
pub(super) fn as_integer(value: &Value) -> Option<i64> {
    /// Whole numbers up to here are exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        value
            .as_f64()
            .filter(|v| v.fract() == 0.0 && v.abs() <= EXACT)
            .map(|v| v as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).expect("an object")
    }

    #[test]
    fn null_is_as_good_as_absent_and_the_last_key_counts() {
        let mut f = fields(r#"{"a": null, "b": 1, "b": 2}"#);
        assert_eq!(f.take("a"), None);
        assert_eq!(f.integer("b", 0..=9), Ok(Some(2)));
        assert_eq!(f.finish(), Ok(()));
    }

    #[test]
    fn whole_numbers_may_be_written_as_decimals() {
        let mut f = fields(r#"{"a": 2.0, "b": 2.5, "c": 1e300, "d": "2", "e": -1}"#);
        assert_eq!(f.integer("a", 0..=9), Ok(Some(2)));
        let message = |r: Result<_, ApiError>| r.unwrap_err().to_string();
        assert_eq!(
            message(f.integer("b", 0..=9)),
            "Invalid type for 'b': expected an integer, but got a decimal."
        );
        assert_eq!(
            message(f.integer("c", 0..=9)),
            "Invalid 'c': expected an integer from 0 to 9, but got 1e+300."
        );
        assert_eq!(
            message(f.integer("d", 0..=9)),
            "Invalid type for 'd': expected an integer, but got a string."
        );
        assert_eq!(
            message(f.integer("e", 0..=9)),
            "Invalid 'e': expected an integer from 0 to 9, but got -1."
        );
    }

    #[test]
    fn what_is_not_json_is_refused_whatever_it_is() {
        let deep = "[".repeat(100_000);
        for body in ["", "{", "[]", "NaN", "{\"a\": 1e999}", "\"\\ud800\"", &deep] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body:.20}");
        }
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn unread_fields_are_named_with_their_path() {
        let f = Fields::of("messages[3]".into(), serde_json::json!({"x": null})).expect("object");
        assert_eq!(
            f.finish().unwrap_err().to_string(),
            "Unrecognized request argument supplied: messages[3].x"
        );
    }
}
