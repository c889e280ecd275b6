//! The largest of many numbers.

/// The `count` likeliest tokens, likeliest first; equal ones by their id.
pub(crate) fn likeliest_few(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_rank =
        |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let count = count.min(ids.len());
    ids.select_nth_unstable_by(count - 1, by_rank);
    ids.truncate(count);
    ids.sort_unstable_by(by_rank);
    ids
}
