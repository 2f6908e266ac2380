//! How urgent a request says it is: `priority`, as vLLM has it, and OpenAI's `service_tier`.

use std::cmp::Ordering;

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, as_integer};
use crate::batching::Priority;

const PRIORITIES: &str =
    "\"high\", \"normal\", \"low\", an integer (the lower, the sooner) or null";
const TIERS: &str = "\"auto\", \"default\", \"flex\", \"scale\", \"priority\" or null";

/// What a request says of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Urgency {
    asked: Option<Priority>,
    /// Whether the answer is to tell the tier.
    tells: bool,
}

impl Urgency {
    /// Takes both parameters out of a request. Of the two, `priority` counts.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let asked = fields.take("priority");
        let asked = asked.map(|value| {
            priority(&value).ok_or_else(|| ApiError::invalid(fields.path("priority"), PRIORITIES))
        });
        let asked = asked.transpose()?;
        let tier = fields.take("service_tier");
        let tells = tier.is_some();
        let tier = tier.map(|value| {
            tier_of(&value).ok_or_else(|| ApiError::invalid(fields.path("service_tier"), TIERS))
        });
        let tier = tier.transpose()?.flatten();
        Ok(Urgency {
            asked: asked.or(tier),
            tells,
        })
    }

    /// The class of the request, where its tenant may use `best` and those below it.
    pub(super) fn within(self, best: Priority) -> Priority {
        self.asked.map_or(best, |asked| asked.max(best))
    }

    /// The tier that the answer tells.
    pub(super) fn tier(self, best: Priority) -> Option<&'static str> {
        self.tells.then(|| match self.within(best) {
            Priority::High => "priority",
            Priority::Normal => "default",
            Priority::Low => "flex",
        })
    }
}

fn priority(value: &Value) -> Option<Priority> {
    match value.as_str() {
        Some("high") => Some(Priority::High),
        Some("normal") => Some(Priority::Normal),
        Some("low") => Some(Priority::Low),
        Some(_) => None,
        None => Some(match as_integer(value)?.cmp(&0) {
            Ordering::Less => Priority::High,
            Ordering::Equal => Priority::Normal,
            Ordering::Greater => Priority::Low,
        }),
    }
}

/// The class of a tier; nothing where it is left to us.
fn tier_of(value: &Value) -> Option<Option<Priority>> {
    Some(match value.as_str()? {
        "auto" => None,
        // What OpenAI sells by this name is not here: such a request is like any other.
        "default" | "scale" => Some(Priority::Normal),
        "flex" => Some(Priority::Low),
        "priority" => Some(Priority::High),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(body: Value) -> Result<Urgency, ApiError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
        let urgency = Urgency::take(&mut fields)?;
        fields.finish().expect("nothing else");
        Ok(urgency)
    }

    #[test]
    fn a_request_gets_what_it_asks_for_within_what_its_tenant_may_use() {
        use Priority::{High, Low, Normal};
        for (body, best, class, tier) in [
            (json!({}), Normal, Normal, None),
            (json!({"service_tier": null}), High, High, None),
            (
                json!({"service_tier": "auto"}),
                High,
                High,
                Some("priority"),
            ),
            (
                json!({"service_tier": "default"}),
                High,
                Normal,
                Some("default"),
            ),
            (
                json!({"service_tier": "priority"}),
                Normal,
                Normal,
                Some("default"),
            ),
            (
                json!({"service_tier": "scale"}),
                High,
                Normal,
                Some("default"),
            ),
            (json!({"service_tier": "flex"}), Normal, Low, Some("flex")),
            (json!({"priority": -3}), High, High, None),
            (json!({"priority": 0}), High, Normal, None),
            (json!({"priority": 7}), High, Low, None),
            (json!({"priority": "high"}), Low, Low, None),
            (
                json!({"priority": "low", "service_tier": "priority"}),
                High,
                Low,
                Some("flex"),
            ),
        ] {
            let urgency = take(body.clone()).expect("valid");
            assert_eq!(
                (urgency.within(best), urgency.tier(best)),
                (class, tier),
                "{body}"
            );
        }
        for body in [
            json!({"priority": "urgent"}),
            json!({"priority": 1.5}),
            json!({"priority": true}),
            json!({"service_tier": "fast"}),
            json!({"service_tier": 1}),
        ] {
            assert!(take(body.clone()).is_err(), "{body}");
        }
    }
}
