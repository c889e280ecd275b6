//! Which script a character is written in, by Unicode's blocks: enough to see what languages a
//! data set may hold, without a model of languages.

/// The scripts that are told apart, with the ranges of their blocks (The Unicode Standard 16,
/// `Blocks.txt`). Characters of no script (digits, punctuation, spaces) are in none.
const SCRIPTS: &[(&str, &[(u32, u32)])] = &[
    (
        "Latin",
        &[
            (0x41, 0x5A),
            (0x61, 0x7A),
            (0xAA, 0xAA),
            (0xBA, 0xBA),
            (0xC0, 0xD6),
            (0xD8, 0xF6),
            (0xF8, 0x2AF),
            (0x1E00, 0x1EFF),
            (0x2C60, 0x2C7F),
            (0xA720, 0xA7FF),
            (0xFB00, 0xFB06),
            (0xFF21, 0xFF3A),
            (0xFF41, 0xFF5A),
        ],
    ),
    (
        "Han",
        &[
            (0x2E80, 0x2FDF),
            (0x3005, 0x3007),
            (0x3400, 0x4DBF),
            (0x4E00, 0x9FFF),
            (0xF900, 0xFAFF),
            (0x20000, 0x323AF),
        ],
    ),
    ("Kana", &[(0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F)]),
    (
        "Hangul",
        &[(0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)],
    ),
    ("Cyrillic", &[(0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)]),
    ("Greek", &[(0x370, 0x3FF), (0x1F00, 0x1FFF)]),
    (
        "Arabic",
        &[(0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)],
    ),
    ("Hebrew", &[(0x590, 0x5FF), (0xFB1D, 0xFB4F)]),
    ("Devanagari", &[(0x900, 0x97F), (0xA8E0, 0xA8FF)]),
    ("Bengali", &[(0x980, 0x9FF)]),
    ("Gurmukhi", &[(0xA00, 0xA7F)]),
    ("Gujarati", &[(0xA80, 0xAFF)]),
    ("Tamil", &[(0xB80, 0xBFF)]),
    ("Telugu", &[(0xC00, 0xC7F)]),
    ("Kannada", &[(0xC80, 0xCFF)]),
    ("Malayalam", &[(0xD00, 0xD7F)]),
    ("Sinhala", &[(0xD80, 0xDFF)]),
    ("Thai", &[(0xE00, 0xE7F)]),
    ("Lao", &[(0xE80, 0xEFF)]),
    ("Tibetan", &[(0xF00, 0xFFF)]),
    ("Myanmar", &[(0x1000, 0x109F)]),
    ("Georgian", &[(0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)]),
    ("Armenian", &[(0x530, 0x58F), (0xFB13, 0xFB17)]),
    ("Ethiopic", &[(0x1200, 0x139F), (0x2D80, 0x2DDF)]),
    ("Khmer", &[(0x1780, 0x17FF), (0x19E0, 0x19FF)]),
];

/// The names of the scripts; [`script_of`] gives indices into them.
pub(super) fn name(index: usize) -> &'static str {
    SCRIPTS.get(index).map_or("other", |(name, _)| name)
}

/// How many scripts are told apart.
pub(super) const COUNT: usize = SCRIPTS.len();

/// The script of a character; `None` for one of no script. A letter of a script that is not
/// listed is [`COUNT`], "other".
pub(super) fn script_of(c: char) -> Option<usize> {
    if c.is_ascii() {
        return c.is_ascii_alphabetic().then_some(0);
    }
    let code = u32::from(c);
    let within = |&(first, last): &(u32, u32)| (first..=last).contains(&code);
    match SCRIPTS.iter().position(|(_, ranges)| ranges.iter().any(within)) {
        Some(index) => Some(index),
        None => c.is_alphabetic().then_some(COUNT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_belong_to_their_scripts() {
        let expected = [
            ("aZéßĐ", "Latin"),
            ("жЯїѢ", "Cyrillic"),
            ("αΩ", "Greek"),
            ("语言漢", "Han"),
            ("ひカ", "Kana"),
            ("한국", "Hangul"),
            ("عرب", "Arabic"),
            ("שלום", "Hebrew"),
            ("हिन", "Devanagari"),
            ("ไทย", "Thai"),
            ("ᏣᎳ", "other"),
        ];
        for (text, script) in expected {
            for c in text.chars() {
                assert_eq!(script_of(c).map(name), Some(script), "{c}");
            }
        }
        for c in "0 .,!?-+=\n😀“”…€".chars() {
            assert_eq!(script_of(c), None, "{c}");
        }
    }
}
