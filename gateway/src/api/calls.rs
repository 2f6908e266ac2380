//! Calls of tools in an answer.

use serde::Serialize;

/// A call of a tool, or what follows of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// Which of the choice's calls it is.
    pub(super) index: usize,
    /// What it begins with, where it does.
    pub(super) head: Option<CallHead>,
    /// JSON, or the next piece of it.
    pub(super) arguments: String,
}

/// What a call is known by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CallHead {
    pub(super) id: String,
    /// Of the tool.
    pub(super) name: String,
}

/// A call in a whole answer.
#[derive(Serialize)]
pub(super) struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

/// A call in a chunk. Clients put the chunks of a call together by its index, and repeat whatever is said twice.
#[derive(Serialize)]
pub(super) struct ChunkCall {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: ChunkFunction,
}

#[derive(Serialize)]
struct ChunkFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl From<Call> for ToolCall {
    fn from(call: Call) -> Self {
        let (id, name) = call
            .head
            .map(|head| (head.id, head.name))
            .unwrap_or_default();
        ToolCall {
            id,
            kind: "function",
            function: Function {
                name,
                arguments: call.arguments,
            },
        }
    }
}

impl From<Call> for ChunkCall {
    fn from(call: Call) -> Self {
        let (id, name) = call.head.map(|head| (head.id, head.name)).unzip();
        ChunkCall {
            index: call.index,
            kind: id.is_some().then_some("function"),
            id,
            function: ChunkFunction {
                name,
                arguments: call.arguments,
            },
        }
    }
}
