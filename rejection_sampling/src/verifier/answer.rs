//! Where in a completion its final answer is.

use std::sync::LazyLock;

use regex::Regex;

use super::fixed;

/// Bytes that an answer may have in its box; a longer one is no answer.
const MAX_BYTES: usize = 2000;

/// How an answer was marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `\boxed{…}` or `\fbox{…}`.
    Boxed,
    /// `#### …`.
    Line,
    /// "the answer is …", "Answer: …".
    Phrase,
    /// `<answer>…</answer>`.
    Tag,
    /// It was the last number.
    LastNumber,
}

/// The final answer of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalAnswer<'a> {
    /// As it was written.
    pub text: &'a str,
    /// How it was marked.
    pub mark: Mark,
}

/// The final answer of `completion`, or `None` where it holds nothing like one. Looked for in what
/// follows the last `</think>`, and there in the last `<answer>…</answer>` if there is one:
///
/// 1. the last `\boxed{…}` or `\fbox{…}` that is closed;
/// 2. what follows the last `####` on its line ([`line`]), or a number that "answer is" or "answer:"
///    stands before, whichever comes later;
/// 3. what follows the last "answer is" or "answer:", up to the end of the sentence or line;
/// 4. all of `<answer>…</answer>`;
/// 5. the last number.
pub fn find(completion: &str) -> Option<FinalAnswer<'_>> {
    let said = after_thinking(completion);
    let tagged = said.rsplit_once("<answer>").map(|(_, inside)| inside.split("</answer>").next());
    let tagged = tagged.flatten();
    let place = tagged.unwrap_or(said);
    let answer = |mark| move |text| FinalAnswer { text, mark };
    let has_number = |said: &&str| said.contains(|c: char| c.is_ascii_digit());
    let of_line = || {
        let (said, from) = line_and_rest(place)?;
        let later = phrase(from).filter(has_number).map(answer(Mark::Phrase));
        later.or_else(|| Some(answer(Mark::Line)(said)))
    };
    boxed(place)
        .map(answer(Mark::Boxed))
        .or_else(of_line)
        .or_else(|| phrase(place).map(answer(Mark::Phrase)))
        .or_else(|| non_empty(tagged?).map(answer(Mark::Tag)))
        .or_else(|| numbers(place).last().map(answer(Mark::LastNumber)))
}

/// What follows the last `</think>`; all of `completion` where there is none.
pub fn after_thinking(completion: &str) -> &str {
    completion.rsplit_once("</think>").map_or(completion, |(_, said)| said)
}

fn non_empty(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// What follows the last `####` on its line. A heading of Markdown is none: a line of words, or one
/// with a number of its own (`#### 2. Add`), that other text follows.
pub fn line(text: &str) -> Option<&str> {
    line_and_rest(text).map(|(said, _)| said)
}

/// [`line`], and all of the text from there on.
fn line_and_rest(text: &str) -> Option<(&str, &str)> {
    static HEADING: LazyLock<Regex> = LazyLock::new(|| fixed(r"^(?:[*_]*\pL|[0-9]+[.):]\s)"));
    let (mut end, mut is_last) = (text.len(), true);
    for line in text.rsplit('\n') {
        let said = line.rsplit_once("####").and_then(|(_, said)| non_empty(said));
        if let Some(said) = said.filter(|said| is_last || !HEADING.is_match(said)) {
            let start = end - line.len() + line.rfind(said).unwrap_or_default();
            return Some((said, &text[start..]));
        }
        is_last &= line.trim().is_empty();
        end = end.saturating_sub(line.len() + 1);
    }
    None
}

/// What is in the last `\boxed{…}` or `\fbox{…}` that is closed and not empty.
pub fn boxed(text: &str) -> Option<&str> {
    let starts = text.rmatch_indices("box").filter_map(|(at, _)| {
        let before = &text[..at];
        let after = &text[at + "box".len()..];
        let after = match () {
            () if before.ends_with("\\f") => after,
            () if before.ends_with('\\') => after.strip_prefix("ed")?,
            () => return None,
        };
        braced(after.trim_start())
    });
    starts.into_iter().find_map(non_empty)
}

/// What is between the brace that `text` starts with and its partner.
fn braced(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('{')?;
    let mut depth = 1;
    let mut escaped = false;
    let end = inside.bytes().take(MAX_BYTES).position(|byte| {
        if !escaped {
            depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        }
        escaped = byte == b'\\' && !escaped;
        depth == 0
    })?;
    Some(&inside[..end])
}

/// What follows the last "answer is" or "answer:" in its sentence.
fn phrase(text: &str) -> Option<&str> {
    static BEFORE: LazyLock<Regex> =
        LazyLock::new(|| fixed(r"(?i)\banswer[\s*_]*(?:(?:is|are)\b|:|=)[\s*_:]*"));
    let after = &text[BEFORE.find_iter(text).last()?.end()..];
    let line = after.lines().next()?;
    let ends_here = |(at, c): (usize, char)| {
        let next = line[at + c.len_utf8()..].chars().next();
        matches!(c, '.' | '!' | '?') && next.is_none_or(|c| c.is_whitespace() || c == '*')
    };
    let end = line.char_indices().find(|place| ends_here(*place)).map_or(line.len(), |(at, _)| at);
    non_empty(&line[..end])
}

/// The numbers in `text`, with sign, thousands commas, fraction bar, percent sign, power, and words
/// such as `million`. The exponent of a letter is none.
pub fn numbers(text: &str) -> impl Iterator<Item = &str> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let fraction = r"(?:[0-9]+ ?)?\\[dt]?frac(?:\{-?[0-9]+\}\{[0-9]+\}|[0-9]{2})";
        let plain = r"(?:[0-9]+ )?[0-9]+/[0-9]+";
        let power = r"(?:\^(?:\{-?[0-9]+\}|-?[0-9]+))?";
        let decimal = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)";
        let times_ten = r"(?:\s?(?:\\times|\\cdot|[×·*])\s?10\^(?:\{-?[0-9]+\}|-?[0-9]+))?";
        let scale =
            r"(?:(?:[ ~-]|\\[ ,]|\\text\{)+(?i:hundred|thousand|million|billion|trillion)\b\}?)*";
        fixed(&format!(
            r"(?:{fraction}|{plain}|{decimal}(?:[eE][-+]?[0-9]+\b|{power}{times_ten})(?:\s?\\?%)?){scale}"
        ))
    });
    NUMBER.find_iter(text).filter_map(|found| {
        let before = &text[..found.start()];
        let touches = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if before.trim_end_matches(['{', '-']).ends_with('^') || before.ends_with(touches) {
            return None;
        }
        let unsigned = before.trim_end_matches(['$', '€', '£']);
        let minus = unsigned.strip_suffix('-').or(unsigned.strip_suffix('−'));
        let is_negative = minus.is_some_and(|left| {
            !left.ends_with(|c: char| c.is_ascii_alphanumeric() || "_)-".contains(c))
        });
        Some(match is_negative {
            true => &text[minus.unwrap_or_default().len()..found.end()],
            false => found.as_str(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_looked_for_in_their_order() {
        for (completion, text, mark) in [
            (r"the answer is 4, \boxed{5}. #### 6", "5", Mark::Boxed),
            (r"\boxed{1} then \boxed{2}", "2", Mark::Boxed),
            (r"\boxed{\frac{1}{2}} and 7", r"\frac{1}{2}", Mark::Boxed),
            (r"\boxed{\{1, 2\}}", r"\{1, 2\}", Mark::Boxed),
            (r"\boxed{5} \boxed{6", "5", Mark::Boxed),
            (r"\boxed{5} \boxed{}", "5", Mark::Boxed),
            (r"\fbox{ 5 }", "5", Mark::Boxed),
            (r"\boxed {5}", "5", Mark::Boxed),
            ("the answer is 4\n#### 5 apples\nbye", "5 apples", Mark::Line),
            ("#### 5\nThe answer is 42.", "42", Mark::Phrase),
            ("#### 5\nI hope this answer is clear.", "5", Mark::Line),
            ("#### Answer: 42", "42", Mark::Phrase),
            ("#### Step 2: add\n3 + 4 is 7.", "7", Mark::LastNumber),
            ("#### 2. Add\nThe answer is 7.", "7", Mark::Phrase),
            ("#### 7\n#### **Note**\nAll is well.", "7", Mark::Line),
            ("so\r\n#### even \r\n \r\n", "even", Mark::Line),
            ("答案是42", "42", Mark::LastNumber),
            ("It has 5 million", "5 million", Mark::LastNumber),
            (r"It is $2\frac{1}{2}$.", r"2\frac{1}{2}", Mark::LastNumber),
            ("It takes 25 m^2", "25", Mark::LastNumber),
            ("####\nThe answer is 4", "4", Mark::Phrase),
            ("The answer is: **4.5**.", "4.5**", Mark::Phrase),
            ("**Final Answer:** x = 3\n\nBye 7", "x = 3", Mark::Phrase),
            ("Final answer:\n\n7", "7", Mark::Phrase),
            ("the answer is 4. The answer is 5. So 6", "5", Mark::Phrase),
            ("ANSWER = blue! 3", "blue", Mark::Phrase),
            ("<answer> even </answer> 4", "even", Mark::Tag),
            (r"<answer>so \boxed{4}</answer> \boxed{5}", "4", Mark::Boxed),
            (r"<think>\boxed{4}</think>It is 5", "5", Mark::LastNumber),
            ("<answer>1</answer><answer>2", "2", Mark::Tag),
            ("3 plus 4 makes 7.", "7", Mark::LastNumber),
            ("an answer: ", "", Mark::LastNumber),
        ] {
            let wanted = (!text.is_empty()).then_some(FinalAnswer { text, mark });
            assert_eq!(find(completion), wanted, "{completion:?}");
        }
    }

    #[test]
    fn numbers_are_found_with_what_belongs_to_them() {
        for (text, wanted) in [
            ("3 + 4 = 7", &["3", "4", "7"][..]),
            ("it costs $1,234.50.", &["1,234.50"]),
            ("-5 and - 5 and 10-5", &["-5", "5", "10", "5"]),
            ("x = -$5", &["-$5"]),
            ("f(2)-3", &["2", "3"]),
            ("1/2 of 1 1/2", &["1/2", "1 1/2"]),
            (r"\frac{1}{2} or \dfrac{-3}{4}", &[r"\frac{1}{2}", r"\dfrac{-3}{4}"]),
            ("50% or 50 % or 50\\%", &["50%", "50 %", "50\\%"]),
            ("1234,567", &["1234", "567"]),
            ("1.5e6, 2E-3 and 3em", &["1.5e6", "2E-3", "3"]),
            ("5 million or 2 Hundred thousand", &["5 million", "2 Hundred thousand"]),
            (r"5\text{ million} of $1.5~billion$", &[r"5\text{ million}", "1.5~billion"]),
            ("a million, 3 millions", &["3"]),
            (r"2\frac{1}{2}, 2 \frac12 and \frac34", &[r"2\frac{1}{2}", r"2 \frac12", r"\frac34"]),
            (
                r"2^{10}, 6.02 \times 10^{23}, 3 × 10^-4",
                &["2^{10}", r"6.02 \times 10^{23}", "3 × 10^-4"],
            ),
            ("x^2 + x^{3}", &[]),
            ("共5个，是-3", &["5", "-3"]),
            ("GPT4 x2 .5", &[".5"]),
            ("1.2.3", &["1.2"]),
            ("٤٢ none", &[]),
            ("", &[]),
        ] {
            assert_eq!(numbers(text).collect::<Vec<_>>(), wanted, "{text:?}");
        }
    }

    #[test]
    fn boxes_inside_boxes_take_no_time() {
        let text = r"\boxed{".repeat(100_000);
        assert_eq!(find(&text), None);
    }
}
