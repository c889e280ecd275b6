//! The benchmarks that are known by name: how a row of each becomes a question.

use halter_core::Result;

use crate::formats::{choice, open};
use crate::question::{Choice, Open, Row};

/// A benchmark.
#[derive(Debug)]
pub struct Format {
    /// What it is called on a command line.
    pub name: &'static str,
    /// The columns that are read, for people.
    pub columns: &'static str,
    /// How its rows are read.
    pub read: Read,
}

/// How rows are read, and what is needed to judge an answer.
#[derive(Debug)]
pub enum Read {
    /// By the log-likelihood of choices.
    Choice(fn(&Row) -> Result<Choice>),
    /// By a completion.
    Open(Completed),
}

/// A benchmark whose answers are completions.
#[derive(Debug)]
pub struct Completed {
    /// The question of a row.
    pub read: fn(&Row) -> Result<Open>,
    /// The scorer that judges, as text.
    pub scorer: &'static str,
    /// A completion of a text ends before the first of these; a conversation ends by itself.
    pub stop: &'static [&'static str],
    /// Most tokens of a completion where nothing is said.
    pub max_new_tokens: usize,
}

/// Choices of one's own.
pub static CHOICES: Format =
    of_choices("choices", "`context` or `prompt`, `choices`, `answer`", choice::choices);

/// Prompts of one's own.
pub static OPEN: Format = Format {
    name: "open",
    columns: "`prompt` or `messages`, `answer`",
    read: Read::Open(Completed {
        read: open::open,
        scorer: "exact",
        stop: &["\n\n"],
        max_new_tokens: 256,
    }),
};

/// All of them. Contexts are those of lm-evaluation-harness's tasks of these names.
pub static FORMATS: [&Format; 13] = [
    &of_choices("arc", "`question`, `choices` (`text`, `label`), `answerKey`", choice::arc),
    &of_choices("boolq", "`passage`, `question`, `label` or `answer`", choice::boolq),
    &of_choices(
        "commonsense_qa",
        "`question`, `choices` (`text`, `label`), `answerKey`",
        choice::commonsense_qa,
    ),
    &of_choices(
        "hellaswag",
        "`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`",
        choice::hellaswag,
    ),
    &of_choices("mmlu", "`question`, `choices`, `answer`, perhaps `subject`", choice::mmlu),
    &of_choices(
        "openbookqa",
        "`question_stem`, `choices` (`text`, `label`), `answerKey`",
        choice::openbookqa,
    ),
    &of_choices("piqa", "`goal`, `sol1`, `sol2`, `label`", choice::piqa),
    &CHOICES,
    &Format {
        name: "asdiv",
        columns: "`body`, `question`, `answer`",
        read: Read::Open(Completed {
            read: open::asdiv,
            scorer: "numeric",
            stop: &["\n\n"],
            max_new_tokens: 256,
        }),
    },
    &Format {
        name: "gsm8k",
        columns: "`question`, `answer`",
        read: Read::Open(Completed {
            read: open::gsm8k,
            scorer: "numeric",
            stop: &["Question:"],
            max_new_tokens: 256,
        }),
    },
    &Format {
        name: "humaneval",
        columns: "`prompt`, `entry_point`, `test`",
        read: Read::Open(Completed {
            read: open::humaneval,
            scorer: "code",
            stop: &["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            max_new_tokens: 1024,
        }),
    },
    &Format {
        name: "ifeval",
        columns: "`prompt`, `instruction_id_list`, `kwargs`",
        read: Read::Open(Completed {
            read: open::ifeval,
            scorer: "ifeval:all",
            stop: &[],
            max_new_tokens: 1280,
        }),
    },
    &OPEN,
];

/// The format of that name.
pub fn named(name: &str) -> Option<&'static Format> {
    FORMATS.into_iter().find(|format| format.name == name)
}

const fn of_choices(
    name: &'static str,
    columns: &'static str,
    read: fn(&Row) -> Result<Choice>,
) -> Format {
    Format { name, columns, read: Read::Choice(read) }
}
