//! `/v1/programs`: what a tenant has stored.

use bytes::Bytes;
use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, Body};
use super::error::ApiError;
use super::models;
use crate::programs::{Kind, ProgramName, ProgramRecord, Programs, Push};
use crate::tenants::Caller;
use crate::workers::Models;

/// A program as it is shown.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProgramObject {
    /// Its name.
    pub id: String,
    /// `program`
    pub object: String,
    /// What it is for.
    pub kind: Kind,
    /// The model that it is made for, if it is for one.
    pub base: Option<String>,
    /// Of the component: it names the version.
    pub digest: String,
    /// Length of the component.
    pub bytes: u64,
    /// When it was stored, in seconds since 1970.
    pub created: i64,
}

/// Some programs as they are shown.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProgramList {
    /// `list`
    pub object: String,
    /// The programs, by name.
    pub data: Vec<ProgramObject>,
}

impl From<ProgramRecord> for ProgramObject {
    fn from(record: ProgramRecord) -> Self {
        ProgramObject {
            id: record.name.to_string(),
            object: "program".to_owned(),
            kind: record.kind,
            base: record.base,
            digest: format!("sha256:{}", record.sha256.hex()),
            bytes: record.bytes,
            created: record.created.as_second(),
        }
    }
}

impl From<Vec<ProgramRecord>> for ProgramList {
    fn from(records: Vec<ProgramRecord>) -> Self {
        ProgramList {
            object: "list".to_owned(),
            data: records.into_iter().map(ProgramObject::from).collect(),
        }
    }
}

/// What `POST /v1/programs` says beside the component.
#[derive(Debug, PartialEq)]
struct Asked {
    name: ProgramName,
    base: Option<String>,
}

impl Asked {
    fn read(query: &str) -> Result<Self, ApiError> {
        let (mut name, mut base) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match key {
                "name" => &mut name,
                "base" => &mut base,
                _ => return Err(ApiError::unknown(key)),
            };
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8_lossy();
            if place.replace(value.into_owned()).is_some() {
                return Err(ApiError::invalid(key, "one value"));
            }
        }
        let name = name.ok_or_else(|| ApiError::missing("name"))?;
        let name = name.parse().map_err(|e| ApiError::invalid("name", e))?;
        Ok(Asked { name, base })
    }
}

/// Stores the component in `body` as its query says.
pub(super) async fn push(
    programs: &Programs,
    available: &Models,
    caller: &Caller,
    query: &str,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    let Asked { name, base } = Asked::read(query)?;
    // One that it may not use does not exist for it.
    if models::find(available, caller, name.as_str()).is_ok() {
        let message = format!("Invalid 'name': `{name}` is the name of a model that is served.");
        return Err(ApiError::conflict("name", message));
    }
    if let Some(base) = &base {
        models::find(available, caller, base).map_err(|error| error.about("base"))?;
    }
    let most = caller.tenant.settings().most_programs();
    let push = Push {
        name,
        base,
        component: body,
    };
    let record = programs.push(&caller.tenant.name, most, push).await?;
    Ok(respond(&ProgramObject::from(record)))
}

/// All that the caller's tenant has stored, by name.
pub(super) async fn list(programs: &Programs, caller: &Caller) -> Result<Response<Body>, ApiError> {
    let records = programs.list(&caller.tenant.name).await?;
    Ok(respond(&ProgramList::from(records)))
}

/// One of them.
pub(super) async fn get(
    programs: &Programs,
    caller: &Caller,
    name: &str,
) -> Result<Response<Body>, ApiError> {
    let record = programs.get(&caller.tenant.name, name).await?;
    Ok(respond(&ProgramObject::from(record)))
}

/// Removes one of them. Requests that use it go on.
pub(super) async fn delete(
    programs: &Programs,
    caller: &Caller,
    name: &str,
) -> Result<Response<Body>, ApiError> {
    let name = programs.remove(&caller.tenant.name, name).await?;
    Ok(respond(
        &json!({"id": name, "object": "program", "deleted": true}),
    ))
}

fn respond(value: &impl Serialize) -> Response<Body> {
    body::json_response(StatusCode::OK, body::json(value).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_all_and_nothing_else() {
        let read = |query: &str| Asked::read(query);
        let asked = read("base=my%2Fmodel+1&name=guard%2Ev2").expect("valid");
        assert_eq!(asked.name.as_str(), "guard.v2");
        assert_eq!(asked.base.as_deref(), Some("my/model 1"));
        for (bad, what) in [
            ("", "Missing required parameter: 'name'"),
            ("base=x", "'name'"),
            ("name=a/b", "'name'"),
            ("name=%FF", "'name'"),
            ("name", "'name'"),
            ("name=a&name=b", "one value"),
            ("name=a&kind=x", "kind"),
        ] {
            let error = read(bad).expect_err(bad).to_string();
            assert!(error.contains(what), "{bad}: {error}");
        }
    }
}
