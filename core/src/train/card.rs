//! The model card: a README.md with the front matter that model hubs read.

use std::fmt::Write;
use std::path::Path;

use super::files::atomic_write;
use crate::Result;

/// A model or data set that a card names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `owner/name` on the hub.
    Hub(String),
    /// A path: of it, the last part is told. A card is public, a home directory is not.
    Local(String),
}

impl Named {
    fn public_name(&self) -> &str {
        match self {
            Self::Hub(id) => id,
            Self::Local(path) => {
                path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
            }
        }
    }

    /// For the front matter: hubs refuse a card whose ids are paths of somebody's disk.
    fn hub_id(&self) -> Option<&str> {
        match self {
            Self::Hub(id) => Some(id),
            Self::Local(_) => None,
        }
    }
}

/// What the card says. Empty parts are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// Name of the model that was made.
    pub name: String,
    /// The model it was made from; none for one made from nothing.
    pub base_model: Option<Named>,
    /// The data.
    pub datasets: Vec<Named>,
    /// e.g. `sft`, `dpo`: a tag, and a word of the text.
    pub method: String,
    /// The method in a sentence or two.
    pub description: String,
    /// More tags, e.g. `lora`.
    pub tags: Vec<String>,
    /// An adapter (PEFT) rather than a whole model.
    pub is_adapter: bool,
    /// A model that scores completions rather than writes them.
    pub is_reward_model: bool,
    /// What is known of the licence: an SPDX name in lower case, or empty.
    pub license: String,
    /// Sentences about the licences of base and data that the reader must mind.
    pub license_notes: Vec<String>,
    /// Names and values, in the order shown.
    pub hyper_parameters: Vec<(String, String)>,
    /// Figures of the run, names and values.
    pub figures: Vec<(String, String)>,
    /// Whether the tokenizer has a chat template, which decides how the model is called.
    pub has_chat_template: bool,
}

impl Card {
    /// The text of the README.
    pub fn render(&self) -> String {
        let mut text = self.front_matter();
        // Writing to a String cannot fail.
        let _ = write!(text, "\n# {}\n\n{}\n", one_line(&self.name), self.introduction());
        self.how_to_load(&mut text);
        table(&mut text, "Figures", &self.figures);
        if !self.datasets.is_empty() {
            text.push_str("\n## Data\n\n");
            for dataset in &self.datasets {
                let _ = writeln!(text, "- {}", code(dataset.public_name()));
            }
        }
        table(&mut text, "Training", &self.hyper_parameters);
        text.push_str("\n## Licence\n\n");
        if self.license_notes.is_empty() {
            text.push_str(
                "The licences of the base model and of the data apply; see to them before you \
                 share this model.\n",
            );
        }
        for note in &self.license_notes {
            let _ = writeln!(text, "{}\n", one_line(note));
        }
        let text = text.trim_end();
        format!("{text}\n\n---\n\nMade with halter {}.\n", env!("CARGO_PKG_VERSION"))
    }

    /// Writes the card, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic_write(path, self.render().as_bytes())
    }

    fn front_matter(&self) -> String {
        let mut text = String::from("---\n");
        let mut list = |key: &str, values: &[&str]| {
            if !values.is_empty() {
                let _ = writeln!(text, "{key}:");
                values.iter().for_each(|value| _ = writeln!(text, "- {}", quoted(value)));
            }
        };
        let base = self.base_model.iter().filter_map(Named::hub_id);
        list("base_model", &base.collect::<Vec<_>>());
        let datasets = self.datasets.iter().filter_map(Named::hub_id);
        list("datasets", &datasets.collect::<Vec<_>>());
        let mut tags = vec!["halter"];
        tags.extend([self.method.as_str()].into_iter().filter(|method| !method.is_empty()));
        tags.extend(self.tags.iter().map(String::as_str));
        list("tags", &tags);
        let library = if self.is_adapter { "peft" } else { "transformers" };
        let task = if self.is_reward_model { "text-classification" } else { "text-generation" };
        let _ = writeln!(text, "library_name: {library}\npipeline_tag: {task}");
        if !self.license.is_empty() {
            let _ = writeln!(text, "license: {}", quoted(&self.license));
        }
        text.push_str("---\n");
        text
    }

    fn introduction(&self) -> String {
        let what = match (self.is_adapter, self.is_reward_model) {
            (true, _) => "An adapter",
            (false, true) => "A reward model",
            (false, false) => "A language model",
        };
        let from = match &self.base_model {
            None => ", trained from fresh weights".to_string(),
            Some(Named::Hub(id)) => format!(" for [{id}](https://huggingface.co/{id})"),
            Some(local) => format!(" for {}", code(local.public_name())),
        };
        let from = if self.is_adapter { from } else { from.replacen(" for ", " made from ", 1) };
        let description = one_line(&self.description);
        format!("{what}{from}. {description}").trim_end().to_string()
    }

    fn how_to_load(&self, text: &mut String) {
        let base = self.base_model.as_ref().map_or("base", Named::public_name);
        let (class, labels) = match self.is_reward_model {
            true => ("AutoModelForSequenceClassification", ", num_labels=1"),
            false => ("AutoModelForCausalLM", ""),
        };
        let import = format!("from transformers import {class}, AutoTokenizer");
        let (imports, load) = match self.is_adapter {
            true => (
                format!("from peft import PeftModel\n{import}"),
                format!(
                    "base = {class}.from_pretrained({}{labels})\n\
                     model = PeftModel.from_pretrained(base, path)",
                    quoted(base)
                ),
            ),
            false => (import, format!("model = {class}.from_pretrained(path)")),
        };
        let ask = match self.has_chat_template {
            true if self.is_reward_model => {
                "messages = [\n    {\"role\": \"user\", \"content\": \"Hello\"},\n    \
                 {\"role\": \"assistant\", \"content\": \"Good day.\"},\n]\n\
                 inputs = tokenizer.apply_chat_template(messages, return_dict=True, \
                 return_tensors=\"pt\")"
            }
            true => {
                "messages = [{\"role\": \"user\", \"content\": \"Hello\"}]\n\
                 inputs = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, \
                 return_dict=True, return_tensors=\"pt\"\n)"
            }
            false => "inputs = tokenizer(\"Hello\", return_tensors=\"pt\")",
        };
        let answer = match self.is_reward_model {
            true => "print(model(**inputs).logits[0, 0])  # the higher, the better",
            false => {
                "output = model.generate(**inputs, max_new_tokens=256)\n\
                 print(tokenizer.decode(output[0], skip_special_tokens=True))"
            }
        };
        let _ = write!(
            text,
            "\n## How to use it\n\n```python\n{imports}\n\npath = \".\"  # this directory\n{load}\n\
             tokenizer = AutoTokenizer.from_pretrained(path)\n{ask}\n{answer}\n```\n"
        );
    }
}

/// A string as YAML, JSON and Python read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text as Markdown code, with a fence that the text cannot close.
fn code(text: &str) -> String {
    let text = one_line(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let space = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

fn table(text: &mut String, title: &str, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    let cell =
        |text: &str| one_line(text).replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;");
    let _ = write!(text, "\n## {title}\n\n| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {} | {} |", cell(name), cell(value));
    }
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
