//! Rotary settings in a `config.json`: `rope_theta` with `rope_scaling`, or transformers 5's
//! `rope_parameters`.

use serde_json::{Map, Value};

use super::RopeScaling;
use super::read::Fields;
use crate::Result;

/// Keys of each supported kind; anything else in the object would change the computation.
const COMMON: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];
const LLAMA3: &[&str] =
    &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

/// Base and scaling, from whichever of the two layouts the file uses.
pub(super) fn read(fields: &Fields<'_>) -> Result<(f64, RopeScaling)> {
    let mut theta = fields.optional_number("rope_theta")?;
    let mut scaling = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let object = match fields.get(key) {
            None => continue,
            Some(Value::Object(object)) if object.is_empty() => continue,
            Some(Value::Object(object)) => per_layer_type(fields, key, object)?,
            Some(other) => return Err(fields.wrong(key, "an object or null", other)),
        };
        let (inner_theta, inner) = parse(fields, key, object)?;
        if let (Some(outer), Some(inner)) = (theta, inner_theta)
            && outer != inner
        {
            return Err(fields.error(format!(
                "`rope_theta` is {outer}, but `{key}` says {inner}: expected them to agree"
            )));
        }
        theta = theta.or(inner_theta);
        if scaling.is_some_and(|first| first != inner) {
            return Err(fields.error("`rope_parameters` and `rope_scaling` differ"));
        }
        scaling = Some(inner);
    }
    let theta = theta.unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(fields.error(format!("`rope_theta` is {theta}: expected a positive number")));
    }
    Ok((theta, scaling.unwrap_or(RopeScaling::None)))
}

/// transformers 5 may keep one object for each layer type; they must all say the same here.
fn per_layer_type<'a>(
    fields: &Fields<'_>,
    key: &str,
    object: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>> {
    const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
    if !object.keys().all(|name| TYPES.contains(&name.as_str())) {
        return Ok(object);
    }
    let mut values = object.values();
    match values.next() {
        Some(Value::Object(first)) if values.all(|v| v.as_object() == Some(first)) => Ok(first),
        _ => Err(fields.error(format!("`{key}` differs between layer types: not supported"))),
    }
}

fn parse(
    fields: &Fields<'_>,
    key: &str,
    object: &Map<String, Value>,
) -> Result<(Option<f64>, RopeScaling)> {
    let number = |name: &str| -> Result<Option<f64>> {
        match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| fields.wrong(&format!("{key}.{name}"), "a number", value)),
        }
    };
    let required = |name: &str| -> Result<f64> {
        let value = number(name)?
            .ok_or_else(|| fields.error(format!("`{key}` lacks `{name}`: expected a number")))?;
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(fields.error(format!("`{key}.{name}` is {value}: expected a positive number")))
    };
    let kind = match object.get("rope_type").or_else(|| object.get("type")) {
        None | Some(Value::Null) => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(fields.wrong(&format!("{key}.rope_type"), "a string", other)),
    };
    if let Some(part) = number("partial_rotary_factor")?
        && part != 1.0
    {
        return Err(fields.error(format!(
            "`{key}.partial_rotary_factor` is {part}: only whole heads are rotated here"
        )));
    }
    let (scaling, known): (_, &[&str]) = match kind {
        "default" => (RopeScaling::None, &[]),
        "linear" => (RopeScaling::Linear { factor: required("factor")? }, &["factor"]),
        "llama3" => {
            let original = required("original_max_position_embeddings")?;
            let scaling = RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_position_embeddings: original as usize,
            };
            check_llama3(fields, key, scaling)?;
            (scaling, LLAMA3)
        }
        other => {
            return Err(fields
                .error(format!(
                    "`{key}` has the type `{other}`: expected `default`, `linear` or `llama3`"
                ))
                .hint("for short sequences, remove the scaling from the file"));
        }
    };
    for (name, value) in object {
        let name = name.as_str();
        if !value.is_null() && !COMMON.contains(&name) && !known.contains(&name) {
            return Err(fields.error(format!(
                "`{key}` of type `{kind}` has the unknown key `{name}` ({value})"
            )));
        }
    }
    Ok((number("rope_theta")?, scaling))
}

fn check_llama3(fields: &Fields<'_>, key: &str, scaling: RopeScaling) -> Result<()> {
    if let RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = scaling
        && low >= high
    {
        return Err(fields.error(format!(
            "`{key}` has `low_freq_factor` {low} and `high_freq_factor` {high}: \
             expected the first to be smaller"
        )));
    }
    Ok(())
}
