//! Keys and values in pages that sequences share.

use std::collections::{HashMap, VecDeque};

use rayon::prelude::*;

use crate::memory::pages::zeroed;
use crate::ops::attention::Shape;
use crate::ops::simd::{exp, max, sum, vectorize};
use crate::ops::slices::Shared;

/// Tokens of a page: as many as numbers in the widest vector.
pub(super) const PAGE: usize = 16;
/// Queries of a group that are computed together.
const QUERIES: usize = 4;

/// A page, of all layers.
pub(super) type PageId = u32;

/// What stands in a page and everything before it, hashed.
pub(super) type Name = [u8; 32];

/// The names of the full pages of `tokens`.
pub(super) fn names(tokens: &[u32]) -> Vec<Name> {
    let mut hasher = blake3::Hasher::new();
    let name = |page: &[u32]| {
        page.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
        *hasher.finalize().as_bytes()
    };
    tokens.chunks_exact(PAGE).map(name).collect()
}

/// Keys and values of all layers. A page has as many users as sequences that hold it; full pages of
/// prompts keep their name when nobody uses them, until their room is needed.
pub(super) struct Pages {
    layers: Vec<Layer>,
    users: Vec<u32>,
    /// Never used, or given back without a name.
    free: Vec<PageId>,
    /// Given back with a name, the longest ago first.
    idle: VecDeque<PageId>,
    names: HashMap<Name, PageId>,
    named: Vec<Option<Name>>,
}

/// One layer's pages: keys as `(page, kv_head, head_dim, PAGE)`, so that a query meets a page's keys
/// side by side, values as `(page, kv_head, PAGE, head_dim)`.
pub(super) struct Layer {
    shape: Shape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Where a query stands: the pages of its sequence, and how many tokens of them it sees.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) pages: &'a [PageId],
    pub(super) tokens: usize,
}

impl Pages {
    /// Room for `count` pages of layers of these shapes. Memory is taken as it is written.
    pub(super) fn new(shapes: &[Shape], count: usize) -> Self {
        let layer = |&shape: &Shape| {
            let numbers = count * shape.kv_heads * shape.head_dim * PAGE;
            Layer { shape, keys: zeroed(numbers), values: zeroed(numbers) }
        };
        Self {
            layers: shapes.iter().map(layer).collect(),
            users: vec![0; count],
            free: (0..count as PageId).rev().collect(),
            idle: VecDeque::new(),
            names: HashMap::new(),
            named: vec![None; count],
        }
    }

    /// Pages that can be had.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A page with one user; `None` where there is none left.
    pub(super) fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop().or_else(|| {
            let page = self.idle.pop_front()?;
            if let Some(name) = self.named[page as usize].take() {
                self.names.remove(&name);
            }
            Some(page)
        })?;
        self.users[page as usize] = 1;
        Some(page)
    }

    /// One more user of a page.
    pub(super) fn share(&mut self, page: PageId) {
        self.users[page as usize] += 1;
    }

    /// One user less.
    fn give_back(&mut self, page: PageId) {
        let users = &mut self.users[page as usize];
        *users -= 1;
        if *users == 0 {
            match self.named[page as usize] {
                Some(_) => self.idle.push_back(page),
                None => self.free.push(page),
            }
        }
    }

    /// One user less of each of a sequence's pages. Of those that keep a name, the last one's room is
    /// needed first: it is of no use without those before it.
    pub(super) fn give_all_back(&mut self, pages: &[PageId]) {
        pages.iter().rev().for_each(|&page| self.give_back(page));
    }

    /// How many pages of these names there are, up to the first that is missing, and how many of them
    /// nobody uses.
    pub(super) fn known(&self, names: &[Name]) -> (usize, usize) {
        let found = names.iter().map_while(|name| self.names.get(name));
        found.fold((0, 0), |(known, idle), &page| {
            (known + 1, idle + usize::from(self.users[page as usize] == 0))
        })
    }

    /// The page of that name, with one more user.
    pub(super) fn find(&mut self, name: &Name) -> Option<PageId> {
        let page = *self.names.get(name)?;
        if self.users[page as usize] == 0 {
            self.idle.retain(|&idle| idle != page);
        }
        self.share(page);
        Some(page)
    }

    /// Names a page that is full. Where another one has that name already, it keeps it.
    pub(super) fn christen(&mut self, page: PageId, name: Name) {
        if self.named[page as usize].is_none() && !self.names.contains_key(&name) {
            self.names.insert(name, page);
            self.named[page as usize] = Some(name);
        }
    }

    /// Copies a page.
    pub(super) fn copy(&mut self, from: PageId, to: PageId) {
        for layer in &mut self.layers {
            let len = layer.page_len();
            let (from, to) = (from as usize * len, to as usize * len);
            layer.keys.copy_within(from..from + len, to);
            layer.values.copy_within(from..from + len, to);
        }
    }

    pub(super) fn layer(&mut self, index: usize) -> &mut Layer {
        &mut self.layers[index]
    }
}

impl Layer {
    fn page_len(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim * PAGE
    }

    /// Writes the keys and values `(rows, kv_heads · head_dim)` of tokens, each as the last one of
    /// its place. No two places end in the same slot of a page.
    pub(super) fn write(&mut self, places: &[Place], k: &[f32], v: &[f32]) {
        let (dim, page_len) = (self.shape.head_dim, self.page_len());
        let width = self.shape.kv_heads * dim;
        assert!(k.len() == places.len() * width && v.len() == k.len(), "{}", k.len());
        let (keys, values) = (Shared::new(&mut self.keys), Shared::new(&mut self.values));
        let rows = k.par_chunks_exact(width).zip(v.par_chunks_exact(width));
        places.par_iter().zip(rows).with_min_len(8).for_each(|(place, (k, v))| {
            let last = place.tokens - 1;
            let (page, slot) = (place.pages[last / PAGE] as usize, last % PAGE);
            for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                let start = page * page_len + head * dim * PAGE;
                // SAFETY: nobody else writes this slot, and nobody reads until all are written.
                let (keys, values) = unsafe { (keys.from(start), values.from(start)) };
                for (i, &k) in k.iter().enumerate() {
                    keys[i * PAGE + slot] = k;
                }
                values[slot * dim..][..dim].copy_from_slice(v);
            }
        });
    }

    /// Attention of `q (rows, heads · head_dim)`, each at its place, into `output` of the same
    /// shape. The bits of a row depend on its query and on what it sees alone.
    pub(super) fn attend(&self, places: &[Place], q: &[f32], output: &mut [f32]) {
        let Shape { heads, kv_heads, head_dim: dim, .. } = self.shape;
        let (group, width) = (heads / kv_heads, heads * dim);
        assert!(q.len() == places.len() * width && output.len() == q.len(), "{}", q.len());
        output
            .par_chunks_mut(group * dim)
            .zip(q.par_chunks(group * dim))
            .enumerate()
            .for_each_init(Vec::new, |scores, (at, (output, q))| {
                let (place, head) = (places[at / kv_heads], at % kv_heads);
                for (output, q) in output.chunks_mut(QUERIES * dim).zip(q.chunks(QUERIES * dim)) {
                    let queries = q.len() / dim;
                    vectorize!(match queries {
                        1 => self.attend_some::<1>(place, head, q, output, scores),
                        2 => self.attend_some::<2>(place, head, q, output, scores),
                        3 => self.attend_some::<3>(place, head, q, output, scores),
                        _ => self.attend_some::<QUERIES>(place, head, q, output, scores),
                    });
                }
            });
    }

    /// `Q` query heads of one group.
    #[inline(always)]
    fn attend_some<const Q: usize>(
        &self,
        place: Place,
        head: usize,
        q: &[f32],
        output: &mut [f32],
        scores: &mut Vec<f32>,
    ) {
        let dim = self.shape.head_dim;
        let first = place.tokens - place.tokens.min(self.shape.window.unwrap_or(usize::MAX));
        let pages = first / PAGE..place.tokens.div_ceil(PAGE);
        let start = pages.start * PAGE;
        let stride = pages.len() * PAGE;
        if scores.len() < Q * stride {
            scores.resize(Q * stride, 0.0);
        }
        let scores = &mut scores[..Q * stride];
        let block = |page: usize| place.pages[page] as usize * self.page_len() + head * dim * PAGE;
        let scale = 1.0 / (dim as f32).sqrt();
        for (i, page) in pages.clone().enumerate() {
            let (keys, _) = self.keys[block(page)..][..dim * PAGE].as_chunks::<PAGE>();
            let mut sums = [[0f32; PAGE]; Q];
            for (d, keys) in keys.iter().enumerate() {
                for (query, sums) in sums.iter_mut().enumerate() {
                    let q = q[query * dim + d];
                    for lane in 0..PAGE {
                        sums[lane] = q.mul_add(keys[lane], sums[lane]);
                    }
                }
            }
            for (query, sums) in sums.iter().enumerate() {
                let line = &mut scores[query * stride + i * PAGE..][..PAGE];
                for lane in 0..PAGE {
                    line[lane] = sums[lane] * scale;
                }
            }
        }
        let seen = first - start..place.tokens - start;
        let mut totals = [0f32; Q];
        for (line, total) in scores.chunks_exact_mut(stride).zip(&mut totals) {
            let line = &mut line[seen.clone()];
            let largest = max(line);
            line.iter_mut().for_each(|s| *s = exp(*s - largest));
            *total = sum(line.len(), |i| line[i]);
        }
        for (query, output) in output.chunks_exact_mut(dim).enumerate() {
            output.fill(0.0);
            let line = &scores[query * stride..][..stride];
            for token in first..place.tokens {
                let weight = line[token - start];
                let values = &self.values[block(token / PAGE) + token % PAGE * dim..][..dim];
                for (o, &v) in output.iter_mut().zip(values) {
                    *o = weight.mul_add(v, *o);
                }
            }
            let inverse = 1.0 / totals[query];
            output.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    const SHAPE: Shape = Shape { heads: 10, kv_heads: 2, head_dim: 24, window: None };

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// Attention written plainly, in f64.
    fn plain(shape: Shape, q: &[f32], k: &[f32], v: &[f32], tokens: usize) -> Vec<f64> {
        let (dim, kv) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let first = tokens - tokens.min(shape.window.unwrap_or(tokens));
        let mut output = Vec::new();
        for head in 0..shape.heads {
            let column = head / (shape.heads / shape.kv_heads) * dim;
            let dot = |t: usize| -> f64 {
                let k = &k[t * kv + column..][..dim];
                let q = &q[head * dim..][..dim];
                q.iter().zip(k).map(|(q, k)| f64::from(q * k)).sum()
            };
            let weights: Vec<f64> =
                (first..tokens).map(|t| (dot(t) / (dim as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..dim {
                let value = |t: usize| f64::from(v[t * kv + column + i]);
                let sum: f64 = weights.iter().zip(first..).map(|(w, t)| w * value(t)).sum();
                output.push(sum / total);
            }
        }
        output
    }

    #[test]
    fn attention_over_scattered_pages_is_attention() {
        for window in [None, Some(1), Some(19)] {
            let shape = Shape { window, ..SHAPE };
            let (width, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            let tokens = 45;
            let (k, v) = (numbers(tokens * kv, 1), numbers(tokens * kv, 2));
            let mut pages = Pages::new(&[shape], 9);
            let mut taken: Vec<PageId> = (0..5).map(|_| pages.take().unwrap()).collect();
            taken.swap(0, 3);
            taken.swap(1, 4);
            let each: Vec<Place> =
                (1..=tokens).map(|tokens| Place { pages: &taken, tokens }).collect();
            pages.layer(0).write(&each, &k, &v);
            let seen = [1, 16, 17, 32, 45];
            let q = numbers(seen.len() * width, 3);
            let places = seen.map(|tokens| Place { pages: &taken, tokens });
            let mut together = vec![0.0; q.len()];
            pages.layer(0).attend(&places, &q, &mut together);
            for (i, place) in places.iter().enumerate() {
                let q = &q[i * width..][..width];
                let mut alone = vec![0.0; width];
                pages.layer(0).attend(&[*place], q, &mut alone);
                assert_eq!(alone, together[i * width..][..width], "in any company");
                for (got, want) in alone.iter().zip(plain(shape, q, &k, &v, place.tokens)) {
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
                }
            }
        }
    }

    #[test]
    fn pages_are_shared_found_again_and_given_back() {
        let mut pages = Pages::new(&[SHAPE], 3);
        let tokens = [1; 2 * PAGE + 3];
        let all = names(&tokens);
        let first = all[0];
        assert_eq!(all[..1], names(&tokens[..PAGE]));
        assert_eq!(all.len(), 2, "the last page is not full");
        assert_ne!(first, all[1], "it follows another one");
        assert_ne!(first, names(&[2; PAGE])[0]);
        let page = pages.take().unwrap();
        pages.christen(page, first);
        assert_eq!(pages.find(&first), Some(page));
        assert_eq!(pages.known(&all), (1, 0));
        pages.give_back(page);
        assert_eq!(pages.available(), 2, "it has a user still");
        pages.give_back(page);
        assert_eq!(pages.available(), 3);
        assert_eq!(pages.known(&all), (1, 1));
        assert_eq!(pages.find(&first), Some(page), "nobody needed its room");
        pages.give_back(page);
        let all: Vec<PageId> = (0..3).map(|_| pages.take().unwrap()).collect();
        assert_eq!(all[2], page, "what has a name goes last");
        assert_eq!(pages.find(&first), None);
        assert_eq!(pages.take(), None);
    }

    #[test]
    fn a_copied_page_goes_its_own_way() {
        let kv = SHAPE.kv_heads * SHAPE.head_dim;
        let width = SHAPE.heads * SHAPE.head_dim;
        let mut pages = Pages::new(&[SHAPE, SHAPE], 2);
        let (one, other) = (pages.take().unwrap(), pages.take().unwrap());
        let q = numbers(width, 3);
        let write = |pages: &mut Pages, page, slot: usize, seed| {
            let place = Place { pages: &[page], tokens: slot + 1 };
            for layer in 0..2 {
                pages.layer(layer).write(&[place], &numbers(kv, seed), &numbers(kv, seed + 1));
            }
        };
        let attend = |pages: &mut Pages, page: PageId| {
            let mut output = vec![0.0; width];
            pages.layer(1).attend(&[Place { pages: &[page], tokens: 2 }], &q, &mut output);
            output
        };
        write(&mut pages, one, 0, 5);
        pages.copy(one, other);
        write(&mut pages, one, 1, 7);
        write(&mut pages, other, 1, 7);
        assert_eq!(attend(&mut pages, one), attend(&mut pages, other));
        write(&mut pages, other, 1, 9);
        assert_ne!(attend(&mut pages, one), attend(&mut pages, other));
    }
}
