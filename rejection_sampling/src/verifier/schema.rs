//! Is the completion JSON of the form that a schema asks for?

use std::fs;
use std::path::Path;

use halter_core::data::parse::value::required;
use halter_core::{Error, Result};
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use super::shortened;
use crate::scorer::{Item, Score, Scorer, hashed};

/// Characters of a validation error in a report.
const DETAIL: usize = 120;

/// 1 where the completion is JSON that a JSON schema accepts, else 0. The JSON stands alone or in
/// one fence (` ```json ` or ` ``` `) with nothing around it. Drafts 4 to 2020-12 as the schema's
/// `$schema` says, else 2020-12; `format` is not checked where the draft leaves that open. A `$ref`
/// to another document is an error: nothing is fetched. Patterns run in linear time.
pub struct JsonSchema {
    source: Source,
    /// Of the file that it was read from.
    fingerprint: Option<String>,
}

enum Source {
    Column(String),
    Compiled(Box<Schema>),
}

struct Schema {
    validator: Validator,
    /// Whether parts of it refer to others. Telling what is wrong then takes time, and memory, that
    /// may double with every level of the completion; whether something is wrong does not.
    refers: bool,
}

impl JsonSchema {
    /// The schema of the file at `path`, for every row.
    ///
    /// # Errors
    /// The file cannot be read or holds no JSON schema.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        let schema = serde_json::from_str(&text).map_err(|error| {
            Error::config(format!("JSON schema: expected JSON, got: {error}")).in_file(path)
        })?;
        let schema = compile(&schema)
            .map_err(|reason| Error::config(format!("JSON schema: {reason}")).in_file(path))?;
        let fingerprint = Some(hashed(text.as_bytes()));
        Ok(Self { source: Source::Compiled(Box::new(schema)), fingerprint })
    }

    /// The schema in the row's `column`: an object, a boolean, or a string of JSON.
    pub fn from_column(column: &str) -> Self {
        Self { source: Source::Column(column.to_string()), fingerprint: None }
    }
}

fn compile(schema: &Value) -> Result<Schema, String> {
    let validator = jsonschema::options()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| shortened(&error.to_string(), DETAIL))?;
    let text = schema.to_string();
    let refers = ["$ref", "$dynamicRef", "$recursiveRef"].iter().any(|key| text.contains(key));
    Ok(Schema { validator, refers })
}

/// Whether `text` is JSON, alone or in a fence.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(without_fence(text)).is_ok()
}

/// What stands in the only fence of `text`, or `text` itself.
fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let Some(inside) = text.strip_prefix("```").and_then(|text| text.strip_suffix("```")) else {
        return text;
    };
    ["json", "JSON", "Json"].iter().find_map(|name| inside.strip_prefix(name)).unwrap_or(inside)
}

fn check(schema: &Schema, completion: &str) -> Score {
    let value = match serde_json::from_str::<Value>(without_fence(completion)) {
        Err(error) => return Score::because(0.0, format!("no JSON: {error}")),
        Ok(value) => value,
    };
    if schema.validator.is_valid(&value) {
        return Score::new(1.0);
    }
    let error = if schema.refers { None } else { schema.validator.validate(&value).err() };
    Score::because(
        0.0,
        match error {
            Some(error) => shortened(&format!("`{}`: {error}", error.instance_path()), DETAIL),
            None => "not what the schema asks for".to_string(),
        },
    )
}

impl Scorer for JsonSchema {
    fn name(&self) -> &str {
        "json-schema"
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        Ok(self.fingerprint.clone())
    }

    fn score(&self, item: &Item) -> Result<Score> {
        match &self.source {
            Source::Compiled(schema) => Ok(check(schema, item.completion)),
            Source::Column(column) => {
                let wrong = |reason| Error::data(format!("JSON schema in `{column}`: {reason}"));
                let schema = match required(item.row, column)? {
                    Value::String(text) => serde_json::from_str(text)
                        .map_err(|error| wrong(format!("expected JSON, got: {error}")))?,
                    other => other.clone(),
                };
                Ok(check(&compile(&schema).map_err(wrong)?, item.completion))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::scorer::NO_PROMPT;

    fn score(schema: Value, completion: &str) -> Result<f64> {
        let row = Map::from_iter([("schema".to_string(), schema)]);
        let item = Item { prompt: &NO_PROMPT, completion, num_tokens: 1, ended: true, row: &row };
        Ok(JsonSchema::from_column("schema").score(&item)?.value)
    }

    #[test]
    fn a_completion_is_right_if_the_schema_accepts_it() {
        let schema = json!({
            "type": "object",
            "properties": {"age": {"type": "integer", "minimum": 0}, "name": {"pattern": "^[A-Z]"}},
            "required": ["age"],
            "additionalProperties": false,
        });
        for (completion, value) in [
            (r#"{"age": 5}"#, 1.0),
            ("\n {\"age\": 5, \"name\": \"Ada\"} ", 1.0),
            ("```json\n{\"age\": 5}\n```", 1.0),
            ("```\n{\"age\": 5}\n```\n", 1.0),
            ("```{\"age\": 5}```", 1.0),
            ("```python\n{\"age\": 5}\n```", 0.0),
            ("Here it is:\n```json\n{\"age\": 5}\n```", 0.0),
            (r#"{"age": -5}"#, 0.0),
            (r#"{"age": "5"}"#, 0.0),
            (r#"{"age": 5, "name": "ada"}"#, 0.0),
            (r#"{"age": 5, "more": 1}"#, 0.0),
            ("{}", 0.0),
            ("5", 0.0),
            (r#"{"age": 5"#, 0.0),
            (r#"{"age": 5}{"age": 5}"#, 0.0),
            ("", 0.0),
            ("```", 0.0),
            ("``````", 0.0),
        ] {
            assert_eq!(score(schema.clone(), completion).unwrap(), value, "{completion}");
        }
        assert_eq!(score(schema.to_string().into(), r#"{"age": 5}"#).unwrap(), 1.0, "as text");
    }

    #[test]
    fn deep_nesting_is_wrong_and_no_overflow() {
        let deep = "[".repeat(100_000);
        assert_eq!(score(json!({}), &deep).unwrap(), 0.0);
    }

    #[test]
    fn a_schema_that_is_none_costs_its_row() {
        for schema in [
            json!({"type": "objekt"}),
            json!("{"),
            json!(5),
            json!(null),
            json!({"$ref": "https://example.com/schema.json"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"pattern": "(?=a)"}),
        ] {
            assert!(score(schema.clone(), "{}").is_err(), "{schema}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        assert_eq!(score(json!({"$ref": "#"}), "{}").unwrap(), 1.0);
        let definition = |at: usize| {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            (format!("d{at}"), json!({"allOf": [next, next], "anyOf": [next, next]}))
        };
        let mut definitions: Map<String, Value> = (0..100).map(definition).collect();
        definitions.insert("d100".into(), json!({"type": "string"}));
        let doubling = json!({"$defs": definitions, "$ref": "#/$defs/d0"});
        let deep = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
        for schema in [
            json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
            json!({"not": {"$ref": "#"}}),
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            json!({"$dynamicAnchor": "x", "allOf": [{"$dynamicRef": "#x"}, {"$dynamicRef": "#x"}]}),
            // two ways at each of a hundred levels, none of which leads to an end
            json!({"type": "object", "anyOf": [
                {"properties": {"a": {"$ref": "#"}}},
                {"properties": {"a": {"$ref": "#"}}, "minProperties": 1},
            ]}),
            doubling,
        ] {
            let start = std::time::Instant::now();
            let _ = (score(schema.clone(), "{}"), score(schema.clone(), &deep));
            assert!(start.elapsed().as_secs() < 10, "{schema}");
        }
    }

    #[test]
    fn a_file_holds_the_schema_of_all_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schema.json");
        fs::write(&path, r#"{"type": "array"}"#).unwrap();
        let scorer = JsonSchema::from_file(&path).unwrap();
        let row = Map::new();
        let item =
            Item { prompt: &NO_PROMPT, completion: "[1]", num_tokens: 1, ended: true, row: &row };
        assert_eq!(scorer.score(&item).unwrap(), Score::new(1.0));
        let score = scorer.score(&Item { completion: "{}", ..item }).unwrap();
        assert_eq!(score.value, 0.0);
        assert!(score.detail.unwrap().contains("array"));
        fs::write(&path, "{").unwrap();
        assert!(JsonSchema::from_file(&path).is_err());
        assert!(JsonSchema::from_file(&dir.path().join("none.json")).is_err());
    }
}
