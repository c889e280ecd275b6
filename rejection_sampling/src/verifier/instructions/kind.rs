//! The instructions, one by one.

use std::sync::LazyLock;

use halter_core::data::parse::value::{expected, required, string};
use halter_core::{Error, Result};
use regex::Regex;
use serde_json::{Map, Value};

use super::language::Language;
use super::text;
use crate::verifier::fixed;
use crate::verifier::schema::is_json;

/// The answers that `detectable_format:constrained_response` allows.
const CONSTRAINED: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

/// A count and what it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    count: usize,
    relation: Relation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    LessThan,
    AtLeast,
}

impl Bound {
    fn read(arguments: &Map<String, Value>, name: &str, relation: &str) -> Result<Self> {
        let count = count(arguments, name)?;
        let relation = match string(arguments, relation)? {
            "less than" => Relation::LessThan,
            "at least" => Relation::AtLeast,
            other => {
                return Err(Error::data(format!(
                    "expected `{relation}` to be `less than` or `at least`, got `{other}`"
                )));
            }
        };
        Ok(Self { count, relation })
    }

    fn holds(self, count: usize) -> bool {
        match self.relation {
            Relation::LessThan => count < self.count,
            Relation::AtLeast => count >= self.count,
        }
    }
}

/// An instruction with its arguments; the id of each is in [`Instruction::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the data set")]
pub enum Instruction {
    KeywordsExistence { keywords: Vec<String> },
    KeywordsFrequency { keyword: String, bound: Bound },
    ForbiddenWords { forbidden_words: Vec<String> },
    LetterFrequency { letter: char, bound: Bound },
    ResponseLanguage { language: Language },
    NumberSentences { bound: Bound },
    NumberParagraphs { num_paragraphs: usize },
    NumberWords { bound: Bound },
    NthParagraphFirstWord { num_paragraphs: usize, nth_paragraph: usize, first_word: String },
    NumberPlaceholders { num_placeholders: usize },
    Postscript { postscript_marker: String },
    NumberBulletLists { num_bullets: usize },
    ConstrainedResponse,
    NumberHighlightedSections { num_highlights: usize },
    MultipleSections { section_spliter: String, num_sections: usize },
    JsonFormat,
    Title,
    TwoResponses,
    RepeatPrompt { prompt_to_repeat: String },
    EndChecker { end_phrase: String },
    CapitalWordFrequency { bound: Bound },
    EnglishCapital,
    EnglishLowercase,
    NoComma,
    Quotation,
}

impl Instruction {
    /// Reads the instruction `id` with its `arguments`; arguments of other instructions and nulls
    /// are ignored, because Parquet files fill them in.
    ///
    /// # Errors
    /// The id is none of IFEval's, or an argument is missing or of another kind.
    pub fn read(id: &str, arguments: &Map<String, Value>) -> Result<Self> {
        Self::read_named(id, arguments).map_err(|error| {
            let named = Error::data(format!("instruction `{id}`: {}", error.message()));
            match error.remedy() {
                Some(hint) => named.hint(hint),
                None => named,
            }
        })
    }

    fn read_named(id: &str, arguments: &Map<String, Value>) -> Result<Self> {
        let text = |name| string(arguments, name).map(str::to_string);
        let number = |name| count(arguments, name);
        let bound = |name, relation| Bound::read(arguments, name, relation);
        Ok(match id {
            "keywords:existence" => {
                Self::KeywordsExistence { keywords: texts(arguments, "keywords")? }
            }
            "keywords:frequency" => Self::KeywordsFrequency {
                keyword: text("keyword")?.trim().to_string(),
                bound: bound("frequency", "relation")?,
            },
            "keywords:forbidden_words" => {
                Self::ForbiddenWords { forbidden_words: texts(arguments, "forbidden_words")? }
            }
            "keywords:letter_frequency" => Self::LetterFrequency {
                letter: letter(arguments)?,
                bound: bound("let_frequency", "let_relation")?,
            },
            "language:response_language" => {
                Self::ResponseLanguage { language: text("language")?.parse()? }
            }
            "length_constraints:number_sentences" => {
                Self::NumberSentences { bound: bound("num_sentences", "relation")? }
            }
            "length_constraints:number_paragraphs" => {
                Self::NumberParagraphs { num_paragraphs: number("num_paragraphs")? }
            }
            "length_constraints:number_words" => {
                Self::NumberWords { bound: bound("num_words", "relation")? }
            }
            "length_constraints:nth_paragraph_first_word" => Self::NthParagraphFirstWord {
                num_paragraphs: number("num_paragraphs")?,
                nth_paragraph: number("nth_paragraph")?,
                first_word: text("first_word")?.to_lowercase(),
            },
            "detectable_content:number_placeholders" => {
                Self::NumberPlaceholders { num_placeholders: number("num_placeholders")? }
            }
            "detectable_content:postscript" => Self::Postscript {
                postscript_marker: text("postscript_marker")?.trim().to_string(),
            },
            "detectable_format:number_bullet_lists" => {
                Self::NumberBulletLists { num_bullets: number("num_bullets")? }
            }
            "detectable_format:constrained_response" => Self::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => {
                Self::NumberHighlightedSections { num_highlights: number("num_highlights")? }
            }
            "detectable_format:multiple_sections" => Self::MultipleSections {
                section_spliter: text("section_spliter")?.trim().to_string(),
                num_sections: number("num_sections")?,
            },
            "detectable_format:json_format" => Self::JsonFormat,
            "detectable_format:title" => Self::Title,
            "combination:two_responses" => Self::TwoResponses,
            "combination:repeat_prompt" => {
                Self::RepeatPrompt { prompt_to_repeat: text("prompt_to_repeat")? }
            }
            "startend:end_checker" => Self::EndChecker { end_phrase: text("end_phrase")? },
            "startend:quotation" => Self::Quotation,
            "change_case:capital_word_frequency" => Self::CapitalWordFrequency {
                bound: bound("capital_frequency", "capital_relation")?,
            },
            "change_case:english_capital" => Self::EnglishCapital,
            "change_case:english_lowercase" => Self::EnglishLowercase,
            "punctuation:no_comma" => Self::NoComma,
            _ => {
                return Err(Error::data("expected one of the 25 ids of IFEval")
                    .hint("such as `keywords:existence` or `punctuation:no_comma`"));
            }
        })
    }

    /// Whether `completion`, which is not blank, follows the instruction (the paper's strict form).
    pub fn is_followed(&self, completion: &str) -> bool {
        match self {
            Self::KeywordsExistence { keywords } => {
                let folded = completion.to_lowercase();
                keywords.iter().all(|keyword| folded.contains(&keyword.to_lowercase()))
            }
            Self::KeywordsFrequency { keyword, bound } => {
                let keyword = keyword.to_lowercase();
                bound.holds(completion.to_lowercase().matches(&keyword).count())
            }
            Self::ForbiddenWords { forbidden_words } => {
                forbidden_words.iter().all(|word| !text::has_word(completion, word))
            }
            Self::LetterFrequency { letter, bound } => {
                let folded = completion.to_lowercase();
                bound.holds(folded.chars().filter(|c| c == letter).count())
            }
            Self::ResponseLanguage { language } => language.is_that_of(completion),
            Self::NumberSentences { bound } => bound.holds(text::count_sentences(completion)),
            Self::NumberParagraphs { num_paragraphs } => {
                text::divided_paragraphs(completion) == Some(*num_paragraphs)
            }
            Self::NumberWords { bound } => bound.holds(text::count_words(completion)),
            Self::NthParagraphFirstWord { num_paragraphs, nth_paragraph, first_word } => {
                let (count, word) = text::paragraph_start(completion, *nth_paragraph);
                count == *num_paragraphs && word.as_deref() == Some(first_word)
            }
            Self::NumberPlaceholders { num_placeholders } => {
                static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| fixed(r"\[.*?\]"));
                PLACEHOLDER.find_iter(completion).count() >= *num_placeholders
            }
            Self::Postscript { postscript_marker } => {
                text::has_postscript(completion, postscript_marker)
            }
            Self::NumberBulletLists { num_bullets } => {
                text::count_bullets(completion) == *num_bullets
            }
            Self::ConstrainedResponse => {
                CONSTRAINED.iter().any(|answer| completion.contains(answer))
            }
            Self::NumberHighlightedSections { num_highlights } => {
                text::count_highlights(completion) >= *num_highlights
            }
            Self::MultipleSections { section_spliter, num_sections } => {
                text::count_numbered(completion, section_spliter) >= *num_sections
            }
            Self::JsonFormat => is_json(completion),
            Self::Title => text::has_title(completion),
            Self::TwoResponses => text::has_two_responses(completion),
            Self::RepeatPrompt { prompt_to_repeat } => {
                let prompt = prompt_to_repeat.trim().to_lowercase();
                completion.trim().to_lowercase().starts_with(&prompt)
            }
            Self::EndChecker { end_phrase } => {
                let end = completion.trim().trim_matches('"').to_lowercase();
                end.ends_with(&end_phrase.trim().to_lowercase())
            }
            Self::CapitalWordFrequency { bound } => {
                bound.holds(text::count_capital_words(completion))
            }
            Self::EnglishCapital => {
                text::is_upper(completion) && Language::ENGLISH.is_that_of(completion)
            }
            Self::EnglishLowercase => {
                text::is_lower(completion) && Language::ENGLISH.is_that_of(completion)
            }
            Self::NoComma => !completion.contains(','),
            Self::Quotation => {
                let text = completion.trim();
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
        }
    }
}

/// A whole number, which some files hold as `3.0`.
fn count(arguments: &Map<String, Value>, name: &str) -> Result<usize> {
    let value = required(arguments, name)?;
    let whole = value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64)
    });
    whole
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| expected(&format!("`{name}`"), "a whole number", value))
}

fn texts(arguments: &Map<String, Value>, name: &str) -> Result<Vec<String>> {
    let value = required(arguments, name)?;
    let texts = value.as_array().map(|texts| {
        texts.iter().map(|text| text.as_str().map(str::to_string)).collect::<Option<Vec<_>>>()
    });
    texts
        .flatten()
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| expected(&format!("`{name}`"), "an array of one string or more", value))
}

/// The single character of `letter`, in lower case.
fn letter(arguments: &Map<String, Value>) -> Result<char> {
    let text = string(arguments, "letter")?.trim().to_lowercase();
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => Ok(letter),
        _ => Err(Error::data(format!("expected `letter` to be one letter, got `{text}`"))),
    }
}
