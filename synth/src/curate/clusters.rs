//! Spherical k-means: vectors of length one, clustered by their cosines (Dhillon and Modha 2001).

use halter_core::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Rounds after which the clusters are taken as they are.
const ROUNDS: usize = 50;

/// Vectors of one length, one after another; (vectors, dimensions).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vectors {
    values: Vec<f32>,
    dimensions: usize,
    len: usize,
}

impl Vectors {
    /// No vectors yet, of so many dimensions.
    pub fn new(dimensions: usize) -> Self {
        Self { values: Vec::new(), dimensions, len: 0 }
    }

    /// Adds one, brought to length one; a vector of zeros stays so. What is missing of its dimensions
    /// is zero.
    pub fn push(&mut self, vector: &[f32]) {
        let start = self.values.len();
        self.values.extend(vector.iter().take(self.dimensions));
        self.values.resize(start + self.dimensions, 0.0);
        normalise(&mut self.values[start..]);
        self.len += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimensions of each.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// One of them.
    pub fn get(&self, at: usize) -> &[f32] {
        &self.values[at * self.dimensions..][..self.dimensions]
    }

    /// The cosine of one of them and another vector of length one.
    pub fn cosine_with(&self, at: usize, other: &[f32]) -> f32 {
        dot(self.get(at), other)
    }

    /// The cosine of two of them.
    pub fn cosine(&self, a: usize, b: usize) -> f32 {
        dot(self.get(a), self.get(b))
    }
}

fn normalise(vector: &mut [f32]) {
    let length = dot(vector, vector).sqrt();
    if length > 0.0 && length.is_finite() {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

/// Eight sums side by side: an order that vectorises and is the same everywhere.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left.zip(right) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Which cluster each vector is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// By vector.
    pub of: Vec<usize>,
    /// Mean directions.
    pub centres: Vectors,
}

/// Clusters vectors into at most `count` clusters. The first centres are drawn by `seed` as k-means++
/// does (Arthur and Vassilvitskii 2007); equal input gives equal clusters. `tick` is called before
/// each round.
///
/// # Errors
/// What `tick` says.
pub fn cluster(
    vectors: &Vectors,
    count: usize,
    seed: u64,
    mut tick: impl FnMut() -> Result<()>,
) -> Result<Clusters> {
    let mut centres =
        first_centres(vectors, count.clamp(1, vectors.len().max(1)), seed, &mut tick)?;
    let mut of = vec![0; vectors.len()];
    for round in 0..ROUNDS {
        tick()?;
        let nearest = assigned(vectors, &centres);
        if round > 0 && nearest == of {
            break;
        }
        of = nearest;
        centres = means(vectors, &of, &centres);
    }
    Ok(Clusters { of, centres })
}

impl Clusters {
    /// The cluster that each of some vectors is nearest to.
    pub fn nearest(&self, vectors: &Vectors) -> Vec<usize> {
        assigned(vectors, &self.centres)
    }
}

fn assigned(vectors: &Vectors, centres: &Vectors) -> Vec<usize> {
    let nearest = |at| nearest(vectors.get(at), centres);
    (0..vectors.len()).into_par_iter().map(nearest).collect()
}

/// The centre with the largest cosine; the first of equals.
fn nearest(vector: &[f32], centres: &Vectors) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for at in 0..centres.len() {
        let cosine = dot(vector, centres.get(at));
        if cosine > best.1 {
            best = (at, cosine);
        }
    }
    best.0
}

fn first_centres(
    vectors: &Vectors,
    count: usize,
    seed: u64,
    tick: &mut impl FnMut() -> Result<()>,
) -> Result<Vectors> {
    let mut centres = Vectors::new(vectors.dimensions);
    if vectors.is_empty() {
        return Ok(centres);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    centres.push(vectors.get(rng.random_range(0..vectors.len())));
    let mut distances = vec![f32::INFINITY; vectors.len()];
    while centres.len() < count {
        tick()?;
        let last = centres.get(centres.len() - 1);
        distances.par_iter_mut().enumerate().for_each(|(at, distance)| {
            // 2 − 2 cos is the squared distance on the sphere.
            *distance = distance.min((2.0 - 2.0 * dot(vectors.get(at), last)).max(0.0));
        });
        let whole: f64 = distances.iter().map(|&distance| f64::from(distance)).sum();
        // What remains is equal to a centre, but for rounding.
        if whole <= 1e-5 * vectors.len() as f64 {
            break;
        }
        let drawn = rng.random::<f64>() * whole;
        let mut sum = 0.0;
        let chosen = distances.iter().position(|&distance| {
            sum += f64::from(distance);
            sum > drawn
        });
        centres.push(vectors.get(chosen.unwrap_or(vectors.len() - 1)));
    }
    Ok(centres)
}

/// The mean direction of each cluster; a cluster without vectors keeps its centre.
fn means(vectors: &Vectors, of: &[usize], before: &Vectors) -> Vectors {
    let mut sums = vec![0f64; before.values.len()];
    let mut sizes = vec![0usize; before.len()];
    for (at, &cluster) in of.iter().enumerate() {
        sizes[cluster] += 1;
        let sums = &mut sums[cluster * vectors.dimensions..][..vectors.dimensions];
        sums.iter_mut().zip(vectors.get(at)).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let mut centres = Vectors::new(vectors.dimensions);
    for (cluster, size) in sizes.into_iter().enumerate() {
        if size == 0 {
            centres.push(before.get(cluster));
            continue;
        }
        let sums = &sums[cluster * vectors.dimensions..][..vectors.dimensions];
        centres.push(&sums.iter().map(|sum| (*sum / size as f64) as f32).collect::<Vec<_>>());
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> Vectors {
        let mut vectors = Vectors::new(3);
        for at in 0..30 {
            let mut vector = [0.05 * (at % 7) as f32, 0.04 * (at % 5) as f32, 0.03];
            vector[at % 3] += 2.0;
            vectors.push(&vector);
        }
        vectors
    }

    #[test]
    fn separate_groups_are_found_whatever_the_seed() {
        for seed in 0..10 {
            let clusters = cluster(&blobs(), 3, seed, || Ok(())).unwrap();
            for at in 0..30 {
                assert_eq!(clusters.of[at] == clusters.of[0], at % 3 == 0, "seed {seed}");
            }
            assert_eq!(clusters, cluster(&blobs(), 3, seed, || Ok(())).unwrap());
        }
    }

    #[test]
    fn there_are_no_more_clusters_than_distinct_vectors() {
        let mut vectors = Vectors::new(2);
        (0..10).for_each(|at| vectors.push(&[1.0, (at % 2) as f32]));
        let clusters = cluster(&vectors, 5, 1, || Ok(())).unwrap();
        assert_eq!(clusters.centres.len(), 2);
        assert_eq!(cluster(&Vectors::new(2), 3, 1, || Ok(())).unwrap().of, Vec::<usize>::new());
    }

    #[test]
    fn vectors_have_length_one_and_their_products_are_cosines() {
        let mut vectors = Vectors::new(10);
        vectors.push(&[3.0; 10]);
        vectors.push(&[-2.0; 10]);
        vectors.push(&[0.0; 10]);
        assert!((vectors.cosine(0, 0) - 1.0).abs() < 1e-6);
        assert!((vectors.cosine(0, 1) + 1.0).abs() < 1e-6);
        assert_eq!(vectors.cosine(0, 2), 0.0);
    }
}
