//! How alike two completions are: 1 − d / n, with d the edit distance in tokens (tokens to add, take
//! away or change; Levenshtein) and n the length of the longer one.

/// Whether `a` and `b` are at least as alike as `limit`, which is in [0, 1].
///
/// Only distances that would be alike enough are looked for: the time grows with the length times
/// the number of changes allowed (Ukkonen 1985).
pub fn is_alike(a: &[u32], b: &[u32], limit: f64) -> bool {
    let longest = a.len().max(b.len());
    // What rounding takes from a limit like 0.9 must not decide.
    let most = ((1.0 - limit) * longest as f64 + 1e-9).floor() as usize;
    distance_within(a, b, most)
}

/// Whether at most `most` edits make `b` of `a`.
fn distance_within(a: &[u32], b: &[u32], most: usize) -> bool {
    let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[prefix..], &b[prefix..]);
    let suffix = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - suffix], &b[..b.len() - suffix]);
    if a.len().abs_diff(b.len()) > most {
        return false;
    }
    // `row[j]`: edits from what was read of `a` to the first `j` of `b`; too many outside of the band.
    let beyond = most + 1;
    let mut row: Vec<usize> = (0..=b.len()).map(|j| j.min(beyond)).collect();
    for (i, x) in a.iter().enumerate() {
        let from = (i + 1).saturating_sub(most);
        let to = (i + 1 + most).min(b.len());
        let mut diagonal = row[from.saturating_sub(1)];
        let mut left = beyond;
        if from == 0 {
            diagonal = row[0];
            row[0] = (i + 1).min(beyond);
            left = row[0];
        } else {
            row[from - 1] = beyond;
        }
        let mut least = left;
        for j in from.max(1)..=to {
            let above = if j < i + 1 + most { row[j] } else { beyond };
            let changed = diagonal + usize::from(*x != b[j - 1]);
            diagonal = row[j];
            left = changed.min(above + 1).min(left + 1).min(beyond);
            row[j] = left;
            least = least.min(left);
        }
        if least > most {
            return false;
        }
    }
    row[b.len()] <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(a: &[u32], b: &[u32]) -> usize {
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, y) in b.iter().enumerate() {
                let changed = diagonal + usize::from(x != y);
                diagonal = row[j + 1];
                row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
            }
        }
        row[b.len()]
    }

    #[test]
    fn the_band_agrees_with_the_whole_table() {
        let mut state = 7u64;
        let mut next = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % limit
        };
        let mut near = 0;
        for _ in 0..2000 {
            let length = next(12);
            let a: Vec<u32> = (0..length).map(|_| next(3) as u32).collect();
            let mut b = a.clone();
            for _ in 0..next(4) {
                let at = next(b.len() as u64 + 1) as usize;
                match next(3) {
                    0 => b.insert(at, next(3) as u32),
                    1 if at < b.len() => drop(b.remove(at)),
                    _ if at < b.len() => b[at] = next(3) as u32,
                    _ => {}
                }
            }
            let expected = distance(&a, &b);
            for most in 0..6 {
                assert_eq!(distance_within(&a, &b, most), expected <= most, "{a:?} {b:?} {most}");
                near += usize::from(expected <= most);
            }
        }
        assert!(near > 2000, "{near}");
    }

    #[test]
    fn one_changed_token_in_ten_is_a_similarity_of_nine_tenths() {
        let a: Vec<u32> = (0..10).collect();
        let mut b = a.clone();
        b[4] = 99;
        assert!(is_alike(&a, &b, 0.9));
        assert!(!is_alike(&a, &b, 0.91));
        assert!(is_alike(&a, &a, 1.0) && !is_alike(&a, &b, 1.0));
        assert!(is_alike(&a, &[], 0.0) && !is_alike(&a, &[], 0.1));
    }
}
