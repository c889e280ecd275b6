//! The fields of a request, each taken once with its type; what is left over is refused.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::fault::Fault;

/// Fields of a request that are still to be read.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Self, Fault> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(Fault::new(StatusCode::BAD_REQUEST, "expected a JSON object")),
            Err(error) => {
                Err(Fault::new(StatusCode::BAD_REQUEST, format!("not valid JSON: {error}")))
            }
        }
    }

    /// The value of a field; null is as good as nothing.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    pub fn number(&mut self, name: &str, default: f32) -> Result<f32, Fault> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(number as f32),
                None => Err(wrong(name, "a number", &value)),
            },
        }
    }

    pub fn count(
        &mut self,
        name: &str,
        allowed: RangeInclusive<usize>,
    ) -> Result<Option<usize>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| allowed.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let (least, most) = (allowed.start(), allowed.end());
                let expected = match *most {
                    usize::MAX => format!("a whole number from {least}"),
                    _ => format!("a whole number from {least} to {most}"),
                };
                Err(wrong(name, &expected, &value))
            }
        }
    }

    /// A field that is understood but has one meaning only here.
    pub fn only(&mut self, name: &str, is_harmless: impl Fn(&Value) -> bool) -> Result<(), Fault> {
        match self.take(name) {
            Some(value) if !is_harmless(&value) => {
                let message = format!("`{name}` is `{value}`, which this server does not support");
                Err(Fault::field(name, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses fields that nobody took.
    pub fn finish(self) -> Result<(), Fault> {
        match self.0.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(Fault::field(name, format!("unknown field `{name}`"))),
        }
    }
}

/// A field of a wrong type or value.
pub fn wrong(name: &str, expected: &str, got: &Value) -> Fault {
    let mut shown = got.to_string();
    if shown.len() > 80 {
        let end = (0..=80).rev().find(|&at| shown.is_char_boundary(at)).unwrap_or(0);
        shown.truncate(end);
        shown.push('…');
    }
    Fault::field(name, format!("`{name}` is `{shown}`: expected {expected}"))
}
