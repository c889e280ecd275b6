//! ROUGE-L (Lin 2004): the F-measure of the longest common subsequence of words.

/// Words as the filter of self-instruct sees them: lower case, letters and digits.
pub(super) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_string).collect()
}

/// What [`rouge_l`] is at most of texts of so many words.
pub(super) fn rouge_l_bound(a: usize, b: usize) -> f64 {
    2.0 * a.min(b) as f64 / (a + b).max(1) as f64
}

/// From 0 to 1; 0 where either is empty.
pub(super) fn rouge_l<T: PartialEq>(a: &[T], b: &[T]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    2.0 * row[b.len()] as f64 / (a.len() + b.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_one_and_others_the_share_of_common_words() {
        let rouge = |a: &str, b: &str| rouge_l(&words(a), &words(b));
        assert_eq!(rouge("Write a poem.", "write A poem"), 1.0);
        // the common subsequence is "police the gunman" without "kill": 3 of 4 and 4 words
        assert_eq!(rouge("police killed the gunman", "police kill the gunman"), 0.75);
        assert_eq!(rouge("police killed the gunman", "the gunman kill police"), 0.5);
        assert_eq!(rouge("", "a"), 0.0);
        assert_eq!(rouge("a b c", "x a b c"), rouge_l_bound(3, 4));
    }
}
