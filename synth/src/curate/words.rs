//! Texts as words: what duplicates, contamination and topics are told by.

use unicode_segmentation::UnicodeSegmentation;

/// The words of a text in lower case, by Unicode's rules (UAX #29); punctuation and spacing are left
/// out. Where a script has no spaces each ideograph is a word.
pub fn words(text: &str) -> Vec<String> {
    text.unicode_words().map(str::to_lowercase).collect()
}

/// A text as its words, with one space between: equal for texts that differ in case, spacing and
/// punctuation alone.
pub fn normalised(text: &str) -> String {
    words(text).join(" ")
}

/// Hashes of every run of `n` words, in order; of a shorter text, the hash of all its words. None of
/// a text without words.
pub fn ngrams(words: &[String], n: usize) -> Vec<u64> {
    let hashes: Vec<u64> = words.iter().map(|word| hash(word.as_bytes())).collect();
    if hashes.is_empty() {
        return Vec::new();
    }
    hashes.windows(n.clamp(1, hashes.len())).map(joined).collect()
}

fn joined(run: &[u64]) -> u64 {
    run.iter().fold(run.len() as u64, |sum, &hash| mix(sum.rotate_left(5) ^ hash))
}

/// FNV-1a, mixed: the same on every machine and in every version.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// The finaliser of SplitMix64 (Steele et al. 2014), a bijection in which every bit depends on every
/// other.
pub fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A text of at most `most` characters, with `…` where it was longer.
pub fn excerpt(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_spacing_and_punctuation_do_not_matter() {
        assert_eq!(normalised("  Hello,\nWORLD! It's 3.5 "), "hello world it's 3.5");
        assert_eq!(words("你好 world"), ["你", "好", "world"]);
        assert!(words("?! …").is_empty());
    }

    #[test]
    fn ngrams_depend_on_the_order_and_short_texts_have_one() {
        let of = |text: &str, n| ngrams(&words(text), n);
        assert_eq!(of("a b c d", 3).len(), 2);
        assert_eq!(of("a b", 3), of("a b", 5));
        assert_ne!(of("a b", 2), of("b a", 2));
        assert_ne!(of("a b", 3), of("ab", 3));
        assert_eq!(of("a b c", 3)[0], of("x a b c", 3)[1]);
        assert!(of("", 3).is_empty());
    }

    #[test]
    fn an_excerpt_is_cut_between_characters() {
        assert_eq!(excerpt("añb", 2), "añ…");
        assert_eq!(excerpt("añ", 2), "añ");
    }
}
