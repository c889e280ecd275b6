//! Values in place of those in a pipeline's file.

use halter_core::{Error, Result};
use toml::{Table, Value};

use super::config::name_of;
use super::options::with_nearest;

/// Puts the value of `told`, `teachers.NAME.KEY=VALUE` or `STEP.KEY=VALUE`, into a pipeline's table. What
/// is no number, no truth value and no quoted text is a text as it stands.
///
/// # Errors
/// Another form, or a teacher or step that there is not.
pub(super) fn set(pipeline: &mut Table, told: &str) -> Result<()> {
    let (path, value) = told.split_once('=').unwrap_or((told, ""));
    let (owner, key) = match path.split('.').collect::<Vec<_>>()[..] {
        ["teachers", name, key] => (teacher(pipeline, name)?, key),
        [name, key] => (step(pipeline, name)?, key),
        _ => (None, ""),
    };
    let owner = owner.filter(|_| !key.is_empty() && !value.is_empty()).ok_or_else(|| {
        Error::config(format!("`set`: expected KEY=VALUE, got `{told}`"))
            .hint("`teachers.NAME.KEY=VALUE` or `STEP.KEY=VALUE`")
    })?;
    let value = match value.parse() {
        Ok(
            plain @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::String(_)),
        ) => plain,
        _ => Value::String(value.into()),
    };
    owner.insert(key.into(), value);
    Ok(())
}

fn teacher<'t>(pipeline: &'t mut Table, name: &str) -> Result<Option<&'t mut Table>> {
    let teachers = pipeline.get("teachers").and_then(Value::as_table);
    let names: Vec<&str> = teachers.into_iter().flat_map(Table::keys).map(String::as_str).collect();
    if !names.contains(&name) {
        let error = Error::config(format!("`set`: no teacher is called `{name}`"));
        return Err(with_nearest(error, name, &names));
    }
    Ok(pipeline["teachers"][name].as_table_mut())
}

fn step<'t>(pipeline: &'t mut Table, name: &str) -> Result<Option<&'t mut Table>> {
    let steps = pipeline.get_mut("step").and_then(Value::as_array_mut);
    let mut steps: Vec<_> = steps.into_iter().flatten().filter_map(Value::as_table_mut).collect();
    match steps.iter().position(|step| name_of(step) == Some(name)) {
        Some(at) => Ok(Some(steps.swap_remove(at))),
        None => {
            let names: Vec<&str> = steps.iter().filter_map(|step| name_of(step)).collect();
            let error = Error::config(format!("`set`: no step is called `{name}`"));
            Err(with_nearest(error, name, &names))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = "[teachers.big]\nlocal = 'a'\n[[step]]\nkind = 'rows'\n\
                            [[step]]\nname = 'said'\nkind = 'answer'\nsamples = 1\n";

    fn with(told: &str) -> Result<Table> {
        let mut table = PIPELINE.parse().unwrap();
        set(&mut table, told).map(|()| table)
    }

    #[test]
    fn values_of_teachers_and_steps_are_put_in_place() {
        let table = with("teachers.big.local=runs/a=b").unwrap();
        assert_eq!(table["teachers"]["big"]["local"].as_str(), Some("runs/a=b"));
        let table = with("rows.input=/data/rows.jsonl").unwrap();
        assert_eq!(table["step"][0]["input"].as_str(), Some("/data/rows.jsonl"));
        let table = with("said.samples=4").unwrap();
        assert_eq!(table["step"][1]["samples"].as_integer(), Some(4));
        let table = with("said.temperature=0.5").unwrap();
        assert_eq!(table["step"][1]["temperature"].as_float(), Some(0.5));
        for text in ["1\nb = 2", "[1]", "2026-11-28", "4 of 5"] {
            let table = with(&format!("said.prompt={text}")).unwrap();
            assert_eq!(table["step"][1]["prompt"].as_str(), Some(text));
        }
        let table = with("said.prompt='4'").unwrap();
        assert_eq!(table["step"][1]["prompt"].as_str(), Some("4"));
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let told = ["", "a", "said", "said=1", "said.", "said.samples", "said.samples=", "a.b.c=1"];
        for told in told.into_iter().chain(["teachers.big=1", "teachers.big.=1"]) {
            assert!(with(told).is_err(), "{told}");
        }
        let error = with("teachers.bog.local=1").unwrap_err();
        assert!(error.to_string().contains("no teacher is called `bog`"), "{error}");
        assert_eq!(error.remedy(), Some("did you mean `big`?"));
        let error = with("sad.samples=1").unwrap_err();
        assert_eq!(error.remedy(), Some("did you mean `said`?"));
    }
}
