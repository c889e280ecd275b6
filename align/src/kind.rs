//! The commands that can be stages.

/// How a command takes its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a file (`--config`).
    Config,
    /// As flags.
    Flags,
}

/// How a command goes on with what a killed one left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumes {
    /// With `--resume`.
    Flag,
    /// Whenever it is given the same output.
    Itself,
    /// It does not.
    Never,
}

/// A command that can be a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its name, as it is typed behind `halter`.
    pub name: &'static str,
    /// How it takes options.
    pub form: Form,
    /// The key of the argument that stands without a flag.
    pub positional: Option<&'static str>,
    /// The file below `--output`'s directory that it is given, where it wants a file.
    pub file: Option<&'static str>,
    /// How it is continued.
    pub resumes: Resumes,
    /// Whether it is given the seed of the round.
    pub seeded: bool,
    /// Whether its result is a model that answers.
    pub answers: bool,
    /// Whether it is told where all stages keep what teachers answer.
    pub asks: bool,
}

const PLAIN: Kind = Kind {
    name: "",
    form: Form::Flags,
    positional: None,
    file: None,
    resumes: Resumes::Flag,
    seeded: true,
    answers: false,
    asks: false,
};
const TRAINING: Kind = Kind { form: Form::Config, answers: true, ..PLAIN };

/// What measures a model.
pub const EVAL: Kind = Kind { name: "eval", ..PLAIN };
/// What measures how far a model's completions are from those of the base.
pub const DRIFT: Kind = Kind { name: "drift", resumes: Resumes::Never, seeded: false, ..PLAIN };

/// All of them but [`DRIFT`], which a recipe does not name.
pub const KINDS: [Kind; 11] = [
    Kind { name: "reward", answers: false, ..TRAINING },
    Kind { name: "sample", ..PLAIN },
    Kind { name: "sft", ..TRAINING },
    Kind { name: "dpo", ..TRAINING },
    Kind { name: "distill", ..TRAINING },
    Kind {
        name: "distill capture",
        file: Some("teacher.logps"),
        resumes: Resumes::Itself,
        seeded: false,
        ..PLAIN
    },
    Kind { name: "distill init", resumes: Resumes::Never, seeded: false, answers: true, ..PLAIN },
    Kind { name: "merge", resumes: Resumes::Never, seeded: false, answers: true, ..PLAIN },
    Kind {
        name: "synth",
        positional: Some("pipeline"),
        resumes: Resumes::Itself,
        asks: true,
        ..PLAIN
    },
    Kind { name: "generate", file: Some("completions.jsonl"), ..PLAIN },
    EVAL,
];

/// The kind of that name.
pub fn named(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Keys whose values name files, models and data sets.
pub const INPUTS: [&str; 18] = [
    "model",
    "adapter",
    "base",
    "chat_template",
    "data",
    "eval_data",
    "fewshot",
    "init_from",
    "pipeline",
    "ref_model",
    "samples",
    "scorer",
    "set",
    "task",
    "teacher",
    "teacher_config",
    "teacher_logps",
    "tokenizer",
];

/// Keys that change nothing of what comes out.
pub const NEUTRAL: [&str; 2] = ["save_every", "keep_checkpoints"];

/// Keys that every stage is given.
pub const TAKEN: [(&str, &str); 5] = [
    ("output", "a stage has a directory of its own"),
    ("answers", "all stages share what teachers answer"),
    ("resume", "an interrupted stage is resumed by itself"),
    ("json", "every stage is asked for it"),
    ("dry_run", "give `--dry-run` to `halter align`"),
];
