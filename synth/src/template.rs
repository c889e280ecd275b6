//! Prompts as Jinja templates.

use halter_core::{Error, ErrorKind, Result};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use crate::pipeline::Options;

/// Instructions of the template engine that a prompt may take.
const FUEL: u64 = 1_000_000;

/// A prompt, checked.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    /// Told in the provenance.
    pub hash: String,
}

/// What is told of a prompt in the provenance.
pub(crate) fn hash(prompt: &str) -> String {
    blake3::hash(prompt.as_bytes()).to_hex()[..16].to_string()
}

impl Template {
    /// The option `key`, or `default`.
    pub fn read(options: &mut Options, key: &str, default: &str) -> Result<Self> {
        let source = options.get::<String>(key)?.unwrap_or_else(|| default.to_string());
        Self::parse(source).map_err(|why| options.wrong(key, &why))
    }

    /// A template; what is wrong with it, where it is none.
    fn parse(source: String) -> Result<Self, String> {
        let hash = hash(&source);
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        let added = environment.add_template_owned("prompt", source);
        added.map_err(|error| format!("not a template: {error:#}"))?;
        Ok(Self { environment, hash })
    }

    /// The template in `source`, the value of `key`, which must show `names`.
    pub fn showing(key: &str, source: &str, names: &[&str]) -> Result<Self> {
        let wrong = |why: &str| Error::config(format!("`{key}`: {why}"));
        let template = Self::parse(source.into()).map_err(|why| wrong(&why))?;
        let parsed = template.environment.get_template("prompt");
        let shown = parsed.map(|parsed| parsed.undeclared_variables(false)).unwrap_or_default();
        match names.iter().find(|name| !shown.contains(**name)) {
            Some(name) => Err(wrong(&format!("expected a template with `{{{{ {name} }}}}`"))),
            None => Ok(template),
        }
    }

    /// The prompt.
    ///
    /// # Errors
    /// A name that there is not, or a template that takes too long.
    pub fn render(&self, names: &Value) -> Result<String> {
        let rendered = self.environment.get_template("prompt").and_then(|t| t.render(names));
        let text = rendered.map_err(|error| {
            Error::new(ErrorKind::Text, format!("a prompt cannot be rendered: {error:#}"))
        })?;
        Ok(text.trim().to_string())
    }
}
