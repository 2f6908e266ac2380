//! The files of a model directory that concern text.

use std::path::Path;

use realm_shared::wire::{MAX_STOP_IDS, Sampling};
use serde_json::Value;

use super::template::SPECIAL_TOKENS;
use super::{ChatTemplate, Text, TextError, Tokenizer};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TEMPLATE_JINJA: &str = "chat_template.jinja";
/// Names of chat templates where there are several: the second is for chats with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const TEMPLATE_JSON: &str = "chat_template.json";

/// Contents of the files of a model directory, as the Hugging Face hub lays it out.
#[derive(Debug, Clone, Copy)]
pub struct TextFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// `config.json`.
    pub config: &'a [u8],
    /// `tokenizer_config.json`: special tokens by name, perhaps the chat template.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `generation_config.json`: sampling defaults and end tokens.
    pub generation_config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which goes before the template in `tokenizer_config.json`.
    pub chat_template: Option<&'a str>,
}

/// Sampling values that a model's makers recommend (`generation_config.json`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Defaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: Option<u32>,
    /// Least probability relative to the best token's.
    pub min_p: Option<f32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
}

impl Text {
    /// Reads a model directory.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let required = |file| {
            read(dir, file)?.ok_or_else(|| TextError::Missing {
                file,
                dir: dir.display().to_string(),
            })
        };
        let chat_template = match (read(dir, TEMPLATE_JINJA)?, read(dir, TEMPLATE_JSON)?) {
            (Some(jinja), _) => Some(
                String::from_utf8(jinja)
                    .map_err(|_| invalid(TEMPLATE_JINJA, "it is not UTF-8 text"))?,
            ),
            (None, Some(json)) => {
                let json = object(TEMPLATE_JSON, &json)?;
                named_template(&json, TEMPLATE_JSON, DEFAULT)?
            }
            (None, None) => None,
        };
        Text::from_parts(&TextFiles {
            tokenizer_json: &required(TOKENIZER)?,
            config: &required(CONFIG)?,
            tokenizer_config: read(dir, TOKENIZER_CONFIG)?.as_deref(),
            generation_config: read(dir, GENERATION_CONFIG)?.as_deref(),
            chat_template: chat_template.as_deref(),
        })
    }

    /// How tokens are drawn where nobody asks for anything else: as the model's makers
    /// recommend, else from the whole distribution; with key 0 and no log-probabilities.
    pub fn sampling(&self) -> Sampling {
        let mut stop_ids = [0; MAX_STOP_IDS];
        let mut stop_count = 0;
        for (slot, &id) in stop_ids.iter_mut().zip(&self.stop_ids) {
            *slot = id;
            stop_count += 1;
        }
        let Defaults {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
        } = self.defaults;
        let plain = Sampling::default();
        Sampling {
            temperature: temperature.unwrap_or(plain.temperature),
            top_p: top_p.unwrap_or(plain.top_p),
            min_p: min_p.unwrap_or(plain.min_p),
            top_k: top_k.unwrap_or(plain.top_k),
            repetition_penalty: repetition_penalty.unwrap_or(plain.repetition_penalty),
            stop_count,
            stop_ids,
            ..plain
        }
    }

    /// Puts the contents of the files together and checks that they agree with one another.
    pub fn from_parts(files: &TextFiles<'_>) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_bytes(files.tokenizer_json)?;
        let config = object(CONFIG, files.config)?;
        let optional = |file, json: Option<&[u8]>| match json {
            Some(json) => object(file, json),
            None => Ok(Value::Null),
        };
        let tokenizer_config = optional(TOKENIZER_CONFIG, files.tokenizer_config)?;
        let generation = optional(GENERATION_CONFIG, files.generation_config)?;

        let of_config = |key: &str| match &config[key] {
            Value::Null => &config["text_config"][key],
            value => value,
        };
        let vocab_size = of_config("vocab_size")
            .as_u64()
            .ok_or_else(|| invalid(CONFIG, "it has no vocab_size"))?;
        if u64::from(tokenizer.vocab_size()) > vocab_size {
            return Err(invalid(
                TOKENIZER,
                format!(
                    "its highest token id is {}, but vocab_size in config.json is {vocab_size}; the two files are of different models",
                    tokenizer.vocab_size() - 1
                ),
            ));
        }

        let specials = special_tokens(&tokenizer_config);
        let id_of = |name: &str| {
            let token = specials.iter().find(|(n, _)| *n == name);
            token.and_then(|(_, content)| tokenizer.id(content))
        };
        let mut stop_ids = token_ids(&generation["eos_token_id"], GENERATION_CONFIG, vocab_size)?;
        stop_ids.extend(token_ids(of_config("eos_token_id"), CONFIG, vocab_size)?);
        stop_ids.extend(id_of("eos_token"));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        if stop_ids.len() > MAX_STOP_IDS {
            return Err(invalid(
                GENERATION_CONFIG,
                format!(
                    "with the other files it names {} end tokens; at most {MAX_STOP_IDS} are supported",
                    stop_ids.len()
                ),
            ));
        }
        let bos_id = match id_of("bos_token") {
            Some(id) => Some(id),
            None => token_ids(of_config("bos_token_id"), CONFIG, vocab_size)?
                .first()
                .copied(),
        };

        let named = |name| named_template(&tokenizer_config, TOKENIZER_CONFIG, name);
        let (source, with_tools) = match files.chat_template {
            Some(source) => (Some(source.to_owned()), None),
            None => (named(DEFAULT)?, named(TOOL_USE)?),
        };
        let template = source
            .map(|source| ChatTemplate::new(&source, with_tools.as_deref(), &specials))
            .transpose()
            .map_err(|e| invalid("chat template", e))?;

        Ok(Text {
            template,
            defaults: defaults(&generation)?,
            stop_ids,
            bos_id,
            max_positions: of_config("max_position_embeddings")
                .as_u64()
                .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            tokenizer,
        })
    }
}

fn invalid(file: &'static str, message: impl Into<String>) -> TextError {
    TextError::Invalid {
        file,
        message: message.into(),
    }
}

fn read(dir: &Path, file: &'static str) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(dir.join(file)) {
        Ok(contents) => Ok(Some(contents)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read {
            file,
            dir: dir.display().to_string(),
            source,
        }),
    }
}

fn object(file: &'static str, json: &[u8]) -> Result<Value, TextError> {
    match serde_json::from_slice(json) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(invalid(file, "it is not a JSON object")),
        Err(e) => Err(invalid(file, format!("it is not valid JSON: {e}"))),
    }
}

/// The special tokens that templates may name, those that the model has. Each is a string, or
/// an object with the string as `content`.
fn special_tokens(tokenizer_config: &Value) -> Vec<(&'static str, String)> {
    SPECIAL_TOKENS
        .into_iter()
        .filter_map(|name| {
            let token = &tokenizer_config[name];
            let content = token.as_str().or_else(|| token["content"].as_str())?;
            Some((name, content.to_owned()))
        })
        .collect()
}

/// `chat_template`: a string, which is the default one, or a list of templates by name.
fn named_template(
    config: &Value,
    file: &'static str,
    name: &str,
) -> Result<Option<String>, TextError> {
    let template = &config["chat_template"];
    match template {
        Value::Null => Ok(None),
        Value::String(source) => Ok((name == DEFAULT).then(|| source.clone())),
        Value::Array(named) => Ok(named
            .iter()
            .find(|t| t["name"] == name)
            .and_then(|t| t["template"].as_str())
            .map(str::to_owned)),
        _ => Err(invalid(
            file,
            "chat_template is neither a string nor a list of named templates",
        )),
    }
}

/// One id or a list of ids.
fn token_ids(value: &Value, file: &'static str, vocab_size: u64) -> Result<Vec<u32>, TextError> {
    let ids = match value {
        Value::Null => &[],
        Value::Array(ids) => ids.as_slice(),
        one => std::slice::from_ref(one),
    };
    ids.iter()
        .map(|id| {
            id.as_u64()
                .filter(|&id| id < vocab_size)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| {
                    invalid(
                        file,
                        format!("its token id {id} is not in the vocabulary of {vocab_size}"),
                    )
                })
        })
        .collect()
}

fn defaults(generation: &Value) -> Result<Defaults, TextError> {
    let number = |key: &str, allowed: fn(f64) -> bool| match &generation[key] {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|&v| allowed(v)) {
            Some(v) => Ok(Some(v as f32)),
            None => Err(invalid(
                GENERATION_CONFIG,
                format!("{key} is {value}, which is out of range"),
            )),
        },
    };
    let top_k = match &generation["top_k"] {
        Value::Null => None,
        value => match value.as_i64() {
            Some(-1) => Some(0),
            Some(k) if k >= 0 => Some(u32::try_from(k).unwrap_or(0)),
            _ => {
                return Err(invalid(
                    GENERATION_CONFIG,
                    format!("top_k is {value}, which is out of range"),
                ));
            }
        },
    };
    Ok(Defaults {
        temperature: number("temperature", |v| (0.0..=100.0).contains(&v))?,
        top_p: number("top_p", |v| v > 0.0 && v <= 1.0)?,
        top_k,
        min_p: number("min_p", |v| (0.0..=1.0).contains(&v))?,
        repetition_penalty: number("repetition_penalty", |v| v > 0.0 && v <= 100.0)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::text::testing::byte_level_json;

    const MINIMAL: &str = r#"{"vocab_size": 267}"#;

    fn load(files: &[(&str, &str)]) -> Result<Text, TextError> {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, contents) in files {
            std::fs::write(dir.path().join(name), contents).expect("written");
        }
        Text::from_dir(dir.path())
    }

    #[test]
    fn end_tokens_are_those_of_all_files() {
        let tokenizer = byte_level_json().to_string();
        let text = load(&[
            (TOKENIZER, &tokenizer),
            (CONFIG, r#"{"text_config": {"vocab_size": 300, "eos_token_id": 5, "max_position_embeddings": 2048}}"#),
            (GENERATION_CONFIG, r#"{"eos_token_id": [264, 7], "temperature": 0.6, "top_k": -1, "top_p": 0.9}"#),
            (TOKENIZER_CONFIG, r#"{"eos_token": "<|end|>", "bos_token": {"content": "<|bos|>"}}"#),
        ])
        .expect("loads");
        assert_eq!(text.stop_ids, [5, 7, 264]);
        assert_eq!(text.bos_id, Some(263));
        assert_eq!(text.max_positions, Some(2048));
        assert_eq!(text.defaults.temperature, Some(0.6));
        assert_eq!(text.defaults.top_k, Some(0));
        assert!(text.template.is_none());
    }

    #[test]
    fn templates_are_found_wherever_they_are_kept() {
        let tokenizer = byte_level_json().to_string();
        let base = [(TOKENIZER, tokenizer.as_str()), (CONFIG, MINIMAL)];
        let inline = (TOKENIZER_CONFIG, r#"{"chat_template": "inline"}"#);
        let named = (
            TOKENIZER_CONFIG,
            r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]}"#,
        );
        let json = (TEMPLATE_JSON, r#"{"chat_template": "json"}"#);
        let jinja = (TEMPLATE_JINJA, "jinja");
        for (files, expected) in [
            (vec![inline], "inline"),
            (vec![named], "named"),
            (vec![inline, json], "json"),
            (vec![inline, json, jinja], "jinja"),
        ] {
            let text = load(&[&base[..], &files].concat()).expect("loads");
            let template = text.template.expect("has one");
            let rendered = |tools: &[Value]| {
                let rendered = template.render(&[""], tools, &Map::new());
                rendered.expect("renders")
            };
            assert_eq!(rendered(&[]), expected);
            let with_tools = rendered(&[Value::Null]);
            let of_its_own = expected == "named";
            assert_eq!(with_tools, if of_its_own { "tools" } else { expected });
        }
    }

    #[test]
    fn faults_name_the_file_and_what_to_do() {
        let tokenizer = byte_level_json().to_string();
        let t = (TOKENIZER, tokenizer.as_str());
        let generation = |g| [t, (CONFIG, MINIMAL), (GENERATION_CONFIG, g)];
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[t], "config.json is missing"),
            (&[(CONFIG, MINIMAL)], "tokenizer.json is missing"),
            (&[t, (CONFIG, "{}")], "it has no vocab_size"),
            (
                &[t, (CONFIG, "[]")],
                "config.json cannot be used: it is not a JSON object",
            ),
            (
                &[t, (CONFIG, r#"{"vocab_size": 266}"#)],
                "highest token id is 266, but vocab_size in config.json is 266",
            ),
            (
                &generation(r#"{"eos_token_id": 267}"#),
                "token id 267 is not in the vocabulary",
            ),
            (
                &generation(r#"{"eos_token_id": [1,2,3,4,5,6,7,8,9]}"#),
                "at most 8",
            ),
            (&generation(r#"{"top_p": 0}"#), "top_p is 0"),
        ];
        for (files, expected) in cases {
            let error = load(files).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
