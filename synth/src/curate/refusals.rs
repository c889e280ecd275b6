//! Answers that decline: the common forms.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// Characters at the beginning of an answer in which a refusal is looked for.
const BEGINNING: usize = 400;

/// What refusals look like; they are read without regard to case, `’` as `'`.
pub const PATTERNS: [&str; 12] = [
    // "I'm sorry, but I can't …"
    r"^\W*(?:(?:i'm|i am|we're|we are) (?:\w+ )?)?(?:sorry|afraid|(?:my )?apologies)\b[^.!?\n]{0,60}\b(?:i|we)(?:'m| am|'re| are)? (?:can't|can ?not|unable to|not able to|won't|will not|not allowed to|not permitted to|not comfortable)\b",
    // "Unfortunately, I am unable to help …"
    r"^\W*(?:(?:unfortunately|regrettably|i apologi[sz]e)\b[^.!?\n]{0,60})?\b(?:i|we)(?:'m| am)? (?:can't|can ?not|unable to|not able to|won't|will not) (?:help|assist|provide|fulfil|comply|answer|create|generate|write|do that|support|engage|discuss|share|participate|continue|offer|give)",
    r"^\W*(?:i|we) (?:must|have to|need to|will have to)(?: \w+)? (?:decline|refuse)\b",
    r"^\W*(?:i|we) (?:don't|do not) feel comfortable\b",
    // "As an AI language model, I cannot …"
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{0,100}\b(?:can't|can ?not|unable|not able|don't|do not|won't|must not)\b",
    r"\b(?:goes|is|would be) against (?:my|our|openai's|the) (?:\w+ )?(?:programming|guidelines|polic(?:y|ies)|principles)\b",
    r"^\W*es tut mir leid\b[^.!?\n]{0,60}\b(?:kann|darf|werde) \w*\W?(?:\w+\W+){0,6}nicht\b",
    r"^\W*(?:je suis )?désolée?\b[^.!?\n]{0,40}\bje ne (?:peux|suis)\b",
    r"^\W*lo siento\b[^.!?\n]{0,40}\bno (?:puedo|estoy)\b",
    r"^\W*(?:sinto muito|desculpe)\b[^.!?\n]{0,40}\bnão (?:posso|consigo)\b",
    r"^\W*(?:对不起|抱歉|很抱歉|非常抱歉)[^。！？\n]{0,20}(?:不能|无法|不可以)",
    r"^\W*(?:申し訳|すみません|ごめんなさい)[^。！？\n]{0,60}(?:できません|できかねます)",
];

/// Compiles a pattern; it is read without regard to case.
///
/// # Errors
/// What is wrong with it, on one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(1 << 22).build();
    built.map_err(|error| {
        let told = error.to_string();
        told.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
    })
}

/// [`PATTERNS`], compiled.
static KNOWN: LazyLock<Vec<Regex>> =
    LazyLock::new(|| PATTERNS.iter().filter_map(|pattern| compile(pattern).ok()).collect());

/// The words with which an answer declines, if it does.
pub fn refusal(answer: &str) -> Option<String> {
    refusal_by(&KNOWN, answer)
}

/// As [`refusal`], by other patterns.
pub fn refusal_by(patterns: &[Regex], answer: &str) -> Option<String> {
    let beginning: String = answer.trim_start().chars().take(BEGINNING).collect();
    let plain = plain_quotes(&beginning);
    patterns.iter().find_map(|pattern| Some(pattern.find(&plain)?.as_str().to_string()))
}

/// A text with `'` for every apostrophe.
pub fn plain_quotes(text: &str) -> String {
    text.replace(['’', 'ʼ', '‘', '`'], "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(KNOWN.len(), PATTERNS.len());
        assert!(compile("(").is_err());
    }

    #[test]
    fn common_refusals_are_found() {
        for answer in [
            "I'm sorry, but I can't help with that.",
            "I’m sorry, I can’t assist with that request.",
            "Sorry, but I am unable to do this.",
            "I am very sorry, but we cannot share it.",
            "I'm afraid I won't be able to.",
            "I cannot provide medical advice.",
            "I can not create such content.",
            "Unfortunately, I am not able to assist you here.",
            "I must respectfully decline.",
            "I have to refuse this.",
            "I don't feel comfortable writing that.",
            "As an AI language model, I do not have opinions.",
            "This request goes against my guidelines.",
            "Es tut mir leid, aber ich kann dabei nicht helfen.",
            "Je suis désolé, mais je ne peux pas vous aider.",
            "Lo siento, pero no puedo ayudar con eso.",
            "Desculpe, mas não posso ajudar.",
            "很抱歉，我无法回答。",
            "申し訳ありませんが、お手伝いできません。",
        ] {
            assert!(refusal(answer).is_some(), "{answer}");
        }
    }

    #[test]
    fn answers_that_only_sound_like_refusals_are_not() {
        for answer in [
            "I'm sorry to hear that your dog is ill. Call a vet.",
            "You cannot divide by zero.",
            "The committee refused. I can help you to write an appeal.",
            "Sorry is the hardest word, says the song.",
            "Penguins can't fly, but they swim well.",
            "Es tut mir leid, das zu hören. Ruf ihn doch an.",
            "def can't_help(): pass",
            "",
        ] {
            assert_eq!(refusal(answer), None, "{answer}");
        }
    }
}
