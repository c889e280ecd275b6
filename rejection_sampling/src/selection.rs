//! Which of the K scored completions of one prompt are kept.
//!
//! All functions take the scores in the order of the completions and give indices into them. Of
//! equal scores the first comes first; a score that is not a number comes last and is never kept.

use std::cmp::Ordering;

/// Places from the best score to the worst.
fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).filter(|at| !scores[*at].is_nan()).collect();
    places.sort_by(|a, b| scores[*b].partial_cmp(&scores[*a]).unwrap_or(Ordering::Equal));
    places
}

/// Best-of-n: the best score that is at least `minimum`.
pub fn best(scores: &[f64], minimum: Option<f64>) -> Option<usize> {
    let best = *ranked(scores).first()?;
    minimum.is_none_or(|minimum| scores[best] >= minimum).then_some(best)
}

/// All scores of at least `threshold`, best first; the best `most` of them where that is given.
pub fn above(scores: &[f64], threshold: f64, most: Option<usize>) -> Vec<usize> {
    let mut kept = ranked(scores);
    kept.retain(|at| scores[*at] >= threshold);
    kept.truncate(most.unwrap_or(usize::MAX));
    kept
}

/// The best `fraction` (0 to 1) of the scores, best first; rounded up, so that any fraction above 0
/// keeps one.
pub fn top_fraction(scores: &[f64], fraction: f64) -> Vec<usize> {
    let mut kept = ranked(scores);
    // a product such as 0.07 · 100 must not round up to one more
    let count = (fraction.clamp(0.0, 1.0) * scores.len() as f64 - 1e-9).ceil().max(0.0) as usize;
    kept.truncate(count);
    kept
}

/// A preference pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The better completion.
    pub chosen: usize,
    /// The worse completion.
    pub rejected: usize,
    /// Score of the better one minus that of the worse.
    pub margin: f64,
}

/// The best completion and the worst with another text (white space around it aside), if their
/// scores differ by at least `minimum_margin` and at all. `scores` and `texts` are of one length.
pub fn best_and_worst(scores: &[f64], texts: &[&str], minimum_margin: f64) -> Option<Pair> {
    let places = ranked(scores);
    let chosen = *places.first()?;
    let lowest = places.iter().rev().find(|at| texts[**at].trim() != texts[chosen].trim())?;
    // the first of those that score the same
    let rejected = *places
        .iter()
        .find(|at| scores[**at] == scores[*lowest] && texts[**at].trim() != texts[chosen].trim())?;
    let margin = scores[chosen] - scores[rejected];
    (margin > 0.0 && margin >= minimum_margin).then_some(Pair { chosen, rejected, margin })
}

/// The answer that most completions gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Majority {
    /// The best-scored completion that gave it.
    pub representative: usize,
    /// Completions that gave it.
    pub votes: usize,
    /// Completions that gave any answer.
    pub voters: usize,
}

/// Numbers the groups of answers that are the `same`: each answer joins the first group whose first
/// member it is the same as. `None` stays without one. For final answers, `same` is
/// [`equivalent`](crate::verifier::math::equivalent) of their texts.
pub fn groups<T>(answers: &[Option<T>], same: impl Fn(&T, &T) -> bool) -> Vec<Option<usize>> {
    let mut firsts: Vec<&T> = Vec::new();
    let mut group_of = |answer| {
        firsts.iter().position(|first| same(first, answer)).unwrap_or_else(|| {
            firsts.push(answer);
            firsts.len() - 1
        })
    };
    answers.iter().map(|answer| answer.as_ref().map(&mut group_of)).collect()
}

/// Majority vote over the groups of the answers (self-consistency, Wang et al. 2023); of groups of
/// one size the one that came first. `None` where nobody answered. A completion whose score is not
/// a number votes, and represents its group only where no other does. `groups` and `scores` are of
/// one length.
pub fn majority(groups: &[Option<usize>], scores: &[f64]) -> Option<Majority> {
    let votes = |group: usize| groups.iter().filter(|other| **other == Some(group)).count();
    let voters = groups.iter().flatten().count();
    let mut winner = None;
    for group in groups.iter().flatten() {
        if winner.is_none_or(|(_, most)| votes(*group) > most) {
            winner = Some((*group, votes(*group)));
        }
    }
    let (group, votes) = winner?;
    let in_group = |at: &usize| groups[*at] == Some(group);
    let representative =
        ranked(scores).into_iter().find(in_group).or_else(|| (0..groups.len()).find(in_group))?;
    Some(Majority { representative, votes, voters })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;

    #[test]
    fn the_best_is_the_first_of_the_highest_scores() {
        for (scores, minimum, wanted) in [
            (&[][..], None, None),
            (&[1.0], None, Some(0)),
            (&[0.0, 2.0, 2.0, 1.0], None, Some(1)),
            (&[-3.0, -1.0], None, Some(1)),
            (&[0.0, 0.5], Some(0.5), Some(1)),
            (&[0.0, 0.5], Some(0.6), None),
            (&[NAN, -1.0], None, Some(1)),
            (&[NAN], None, None),
            (&[0.0, -0.0], None, Some(0)),
            (&[-0.0, 0.0], None, Some(0)),
            (&[f64::NEG_INFINITY, f64::INFINITY], None, Some(1)),
        ] {
            assert_eq!(best(scores, minimum), wanted, "{scores:?} {minimum:?}");
        }
    }

    #[test]
    fn all_above_a_threshold_are_kept_best_first() {
        let scores = [0.5, 1.0, NAN, 0.2, 0.5, 0.9];
        assert_eq!(above(&scores, 0.5, None), [1, 5, 0, 4]);
        assert_eq!(above(&scores, 0.5, Some(3)), [1, 5, 0]);
        assert_eq!(above(&scores, 0.5, Some(0)), [0; 0]);
        assert_eq!(above(&scores, 1.1, None), [0; 0]);
        assert_eq!(above(&scores, f64::NEG_INFINITY, None).len(), 5);
    }

    #[test]
    fn the_top_fraction_is_rounded_up() {
        let scores: Vec<f64> = (0..10).map(f64::from).collect();
        for (fraction, count) in
            [(0.0, 0), (0.01, 1), (0.1, 1), (0.11, 2), (0.3, 3), (0.7, 7), (1.0, 10), (9.0, 10)]
        {
            let kept = top_fraction(&scores, fraction);
            assert_eq!(kept.len(), count, "{fraction}");
            assert!(kept.iter().enumerate().all(|(rank, at)| *at == 9 - rank));
        }
        assert_eq!(top_fraction(&scores, -1.0).len(), 0);
        assert_eq!(top_fraction(&scores, NAN).len(), 0);
        assert_eq!(top_fraction(&[0.0; 100], 0.07).len(), 7);
    }

    #[test]
    fn a_pair_is_the_best_and_the_worst_of_different_texts() {
        let pair = |scores: &[f64], texts: &[&str], margin| {
            best_and_worst(scores, texts, margin).map(|pair| (pair.chosen, pair.rejected))
        };
        assert_eq!(pair(&[0.0, 1.0, 0.5], &["a", "b", "c"], 0.0), Some((1, 0)));
        assert_eq!(pair(&[0.0, 1.0, 0.0], &["a", "b", "c"], 1.0), Some((1, 0)), "the first worst");
        assert_eq!(pair(&[0.0, 1.0], &["a", "b"], 1.1), None, "margin too small");
        assert_eq!(pair(&[1.0, 1.0], &["a", "b"], 0.0), None, "no margin");
        assert_eq!(pair(&[0.0, 1.0], &["a", "a "], 0.0), None, "one text");
        assert_eq!(pair(&[0.0, 1.0, 0.5], &["a", "a", "c"], 0.0), Some((1, 2)), "the next worst");
        assert_eq!(pair(&[NAN, 1.0, 0.5], &["a", "b", "c"], 0.0), Some((1, 2)));
        assert_eq!(pair(&[1.0], &["a"], 0.0), None);
        assert_eq!(pair(&[], &[], 0.0), None);
    }

    #[test]
    fn the_majority_is_represented_by_its_best_completion() {
        let same = |a: &&str, b: &&str| a.eq_ignore_ascii_case(b);
        for (answers, scores, wanted) in [
            (&[Some("5"), Some("6"), Some("6")][..], &[9.0, 0.0, 1.0][..], Some((2, 2, 3))),
            (&[Some("a"), Some("B"), Some("A"), Some("b")], &[0.0, 1.0, 0.0, 2.0], Some((0, 2, 4))),
            (&[None, None, Some("x")], &[1.0, 1.0, 0.0], Some((2, 1, 1))),
            (&[None, None], &[1.0, 1.0], None),
            (&[], &[], None),
            (&[Some("5"), Some("5")], &[NAN, NAN], Some((0, 2, 2))),
            (&[Some("5"), Some("5")], &[NAN, -1.0], Some((1, 2, 2))),
        ] {
            let got = majority(&groups(answers, same), scores);
            let got = got.map(|found| (found.representative, found.votes, found.voters));
            assert_eq!(got, wanted, "{answers:?}");
        }
    }
}
