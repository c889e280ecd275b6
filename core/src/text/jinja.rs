//! The Jinja environment of transformers' `apply_chat_template`, on minijinja: its settings,
//! filters, tests, functions and Python's methods, with limits for templates that never end.

use std::fmt;

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};

use super::python::{self, JsonStyle};
use super::strftime::Moment;

/// Instructions that one rendering may take; the longest real conversations take under a million.
const FUEL: u64 = 20_000_000;
/// Name under which a rendering asks for marks around `{% generation %}` blocks.
pub(crate) const MARK: &str = "__halter_mark_generation";
/// Marks put around what a `{% generation %}` block rendered.
pub(crate) const MARKS: [char; 2] = ['\u{f5c0}', '\u{f5c1}'];

/// What a template said through `raise_exception`.
#[derive(Debug)]
pub(crate) struct Raised(pub(crate) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// An environment with transformers' settings; `now` is what `strftime_now` reads.
pub(crate) fn environment(now: Moment) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_keep_trailing_newline(false);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&python::str(value)).map_err(Error::from),
    });
    env.set_unknown_method_callback(methods);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::from(ErrorKind::InvalidOperation).with_source(Raised(python::str(&message))))
    });
    env.add_function("strftime_now", move |format: &str| now.strftime(format));
    env.add_function("__generation", generation);
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| python::str(&value));
    env.add_filter("trim", |value: Value, chars: Option<String>| {
        strip(&python::str(&value), chars.as_deref(), true, true).to_string()
    });
    env.add_filter("join", join);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
            || (value.kind() == ValueKind::Iterable && value.len().is_some())
            || value.is_undefined()
    });
    env.add_test("number", |value: Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    env
}

/// The body of a `{% generation %}` block, which is called as a block: passed through, or marked.
fn generation(state: &State, kwargs: Kwargs) -> Result<Value, Error> {
    let caller: Value = kwargs.get("caller")?;
    let body = caller.call(state, &[])?;
    match state.lookup(MARK) {
        Some(mark) if mark.is_true() => {
            Ok(Value::from(format!("{}{}{}", MARKS[0], python::str(&body), MARKS[1])))
        }
        _ => Ok(body),
    }
}

fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let mut style = JsonStyle::default();
    if let Some(indent) = kwargs.get::<Option<Value>>("indent")? {
        style.indent = match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => Some(text.to_string()),
            (None, Some(width)) => {
                Some(" ".repeat(usize::try_from(width.clamp(0, 64)).unwrap_or(0)))
            }
            (None, None) => None,
        };
    }
    style.ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let text = |index: usize| -> Result<String, Error> {
                Ok(python::str(&pair.get_item_by_index(index)?))
            };
            style.item_separator = text(0)?;
            style.key_separator = text(1)?;
        }
        // as Python: with an indent, the comma is not followed by a space
        _ => {}
    }
    kwargs.assert_all_used()?;
    python::json(&value, &style)
}

fn join(values: Value, separator: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let attribute: Option<String> = kwargs.get("attribute")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            out.push_str(separator.as_deref().unwrap_or_default());
        }
        match &attribute {
            Some(name) => out.push_str(&python::str(&value.get_attr(name)?)),
            None => out.push_str(&python::str(&value)),
        }
    }
    Ok(out)
}

fn length(value: Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("object of type `{}` has no length", value.kind()),
        )
    })
}

/// Python's methods that pycompat lacks or does otherwise; the rest is pycompat's.
fn methods(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = str_method(text, method, args)?
    {
        return Ok(result);
    }
    if value.kind() == ValueKind::Map && method == "copy" {
        return Ok(value.clone());
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        return match value.try_iter()?.position(|item| item == *wanted) {
            Some(index) => Ok(Value::from(index)),
            None => Err(Error::new(ErrorKind::InvalidOperation, "value is not in the list")),
        };
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn str_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found = match method {
                "partition" => text.split_once(separator),
                _ => text.rsplit_once(separator),
            };
            list(match found {
                Some((before, after)) => vec![before, separator, after],
                None if method == "partition" => vec![text, "", ""],
                None => vec!["", "", text],
            })
        }
        "count" => {
            let (wanted,): (&str,) = from_args(args)?;
            Value::from(match wanted {
                "" => text.chars().count() + 1,
                _ => text.matches(wanted).count(),
            })
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if method.starts_with('r') { text.rfind(wanted) } else { text.find(wanted) };
            match at {
                // characters, not bytes
                Some(at) => Value::from(text[..at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => {
                    return Err(Error::new(ErrorKind::InvalidOperation, "substring not found"));
                }
            }
        }
        "splitlines" if args.is_empty() => {
            let body = text.strip_suffix('\n').unwrap_or(text);
            body.split('\n')
                .filter(|_| !text.is_empty())
                .map(|line| Value::from(line.strip_suffix('\r').unwrap_or(line)))
                .collect::<Vec<Value>>()
                .into()
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(python::is_space)),
        "isdigit" | "isnumeric" | "isdecimal" => {
            Value::from(!text.is_empty() && text.chars().all(char::is_numeric))
        }
        "isalnum" => Value::from(!text.is_empty() && text.chars().all(char::is_alphanumeric)),
        "isalpha" => Value::from(!text.is_empty() && text.chars().all(char::is_alphabetic)),
        "isupper" => Value::from(
            text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        ),
        "islower" => Value::from(
            text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        ),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let missing = width.min(4_096).saturating_sub(text.chars().count());
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => (&text[..1], digits),
                None => ("", text),
            };
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect::<Vec<Value>>().into()
}

/// `str.split` and `str.rsplit`, with the separator and the number of splits in either form.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(value) => Some(value),
        None => kwargs.get::<Option<Value>>("sep")?,
    };
    let most = match most {
        Some(most) => Some(most),
        None => kwargs.get::<Option<i64>>("maxsplit")?,
    };
    kwargs.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
    let separator = separator.filter(|value| !value.is_none());
    let Some(separator) = separator else {
        return Ok(list(split_space(text, most, from_right)));
    };
    let separator = separator.as_str().map(str::to_string).unwrap_or_default();
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let mut parts: Vec<&str> = match from_right {
        false => text.splitn(most + 1, &separator).collect(),
        true => text.rsplitn(most + 1, &separator).collect(),
    };
    if from_right {
        parts.reverse();
    }
    Ok(list(parts))
}

fn split_space(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_matches(python::is_space);
    while !rest.is_empty() {
        let at = if parts.len() >= most {
            None
        } else if from_right {
            rest.rfind(python::is_space)
        } else {
            rest.find(python::is_space)
        };
        let Some(at) = at else {
            parts.push(rest);
            break;
        };
        if from_right {
            parts.push(rest[at..].trim_start_matches(python::is_space));
            rest = rest[..at].trim_end_matches(python::is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(python::is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `str.strip(chars)` on one side or both.
fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let gone = |char: char| match chars {
        Some(chars) => chars.contains(char),
        None => python::is_space(char),
    };
    let text = if left { text.trim_start_matches(gone) } else { text };
    if right { text.trim_end_matches(gone) } else { text }
}

/// Prepares a template's source: newlines as Jinja reads them, `{% generation %}` as a call block.
pub(crate) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at + 2]);
        rest = &rest[at + 2..];
        let sign = rest.len() - rest.trim_start_matches(['-', '+']).len();
        let after = &rest[sign..];
        let space = after.len() - after.trim_start().len();
        let tag = &after[space..];
        for (name, call) in [("generation", "call __generation()"), ("endgeneration", "endcall")] {
            let Some(end) = tag.strip_prefix(name) else { continue };
            if end.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&rest[..sign + space]);
                out.push_str(call);
                rest = end;
            }
        }
    }
    out.push_str(rest);
    out
}
