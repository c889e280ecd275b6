//! Declarations of tools, and calls that are held against them.

use std::path::{Path, PathBuf};

use halter_core::{Error, Result};
use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value, json};

use crate::asking::excerpt;
use crate::pipeline::Options;
use crate::row::Row;

/// Tools by their names.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As OpenAI's API and the column `tools` have them.
    pub declared: Vec<Value>,
    validators: Vec<(String, Parameters)>,
}

#[derive(Debug)]
struct Parameters {
    validator: Validator,
    /// Whether parts refer to others. Telling what is wrong may then take time that doubles with every
    /// level of the arguments; whether something is wrong does not.
    refers: bool,
}

/// A call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub name: String,
    pub arguments: Map<String, Value>,
}

impl Tools {
    /// The option `tools`: the path of a JSON file, or the declarations themselves. Beside them the
    /// file, where it is one.
    pub fn read(options: &mut Options) -> Result<(Option<Self>, Option<PathBuf>)> {
        let Some(given) = options.get::<toml::Value>("tools")? else { return Ok((None, None)) };
        let (list, path) = match given {
            toml::Value::String(path) => (file(Path::new(&path))?, Some(PathBuf::from(path))),
            other => (json!(other), None),
        };
        let tools = Self::new(&list).map_err(|why| match &path {
            Some(path) => Error::config(format!("tools: {why}")).in_file(path),
            None => options.wrong("tools", &why),
        })?;
        Ok((Some(tools), path))
    }

    /// The row's own, where it has any.
    pub fn of(row: &Row) -> Option<Result<Self, String>> {
        let list = match row.0.get("tools")? {
            Value::Null => return None,
            Value::String(text) if text.trim().is_empty() => return None,
            Value::String(text) => match serde_json::from_str(text) {
                Ok(list) => list,
                Err(error) => return Some(Err(format!("a string that is not JSON: {error}"))),
            },
            other => other.clone(),
        };
        Some(Self::new(&list))
    }

    fn new(list: &Value) -> Result<Self, String> {
        let list = list.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or("expected a list of declarations")?;
        let mut tools = Self { declared: Vec::new(), validators: Vec::new() };
        for tool in list {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.is_empty() {
                let got = excerpt(&tool.to_string());
                return Err(format!("expected a declaration with a `name`, got `{got}`"));
            }
            if tools.parameters(name).is_some() {
                return Err(format!("`{name}` is declared twice"));
            }
            let schema = function.get("parameters").cloned().unwrap_or_else(|| json!({}));
            let validator = jsonschema::options()
                .with_pattern_options(PatternOptions::regex())
                .build(&schema)
                .map_err(|error| format!("`{name}`: {}", excerpt(&error.to_string())))?;
            let text = schema.to_string();
            let refers =
                ["$ref", "$dynamicRef", "$recursiveRef"].iter().any(|key| text.contains(key));
            tools.validators.push((name.into(), Parameters { validator, refers }));
            tools.declared.push(match tool.get("function") {
                Some(_) => tool.clone(),
                None => json!({"type": "function", "function": tool}),
            });
        }
        Ok(tools)
    }

    fn parameters(&self, name: &str) -> Option<&Parameters> {
        let found = self.validators.iter().find(|(known, _)| known == name);
        found.map(|(_, parameters)| parameters)
    }

    pub fn names(&self) -> Vec<&str> {
        self.validators.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// What a tool's declaration says.
    pub fn declaration(&self, name: &str) -> Option<&Value> {
        let at = self.validators.iter().position(|(known, _)| known == name)?;
        self.declared.get(at)
    }

    /// What is wrong with a call, if anything is.
    pub fn fault(&self, call: &Call) -> Option<String> {
        let Some(parameters) = self.parameters(&call.name) else {
            let names = self.names().join("`, `");
            return Some(format!("expected one of `{names}`, got `{}`", excerpt(&call.name)));
        };
        let arguments = Value::Object(call.arguments.clone());
        if parameters.validator.is_valid(&arguments) {
            return None;
        }
        let error = match parameters.refers {
            true => None,
            false => parameters.validator.validate(&arguments).err(),
        };
        Some(match error {
            Some(error) => {
                let text = format!("`{}{}`: {error}", call.name, error.instance_path());
                excerpt(&text)
            }
            None => format!("`{}`: the arguments are not what the schema asks for", call.name),
        })
    }
}

fn file(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::config(format!("tools: expected JSON, got: {error}")).at(path, error.line())
    })
}
