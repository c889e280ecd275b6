//! The run's randomness: one ChaCha8 stream for each purpose, so that a new use of random numbers
//! never changes what the others draw, with a position that a checkpoint can hold.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A generator that depends on `seed` and `purpose` and on nothing else.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    keyed(seed, purpose, None)
}

/// A generator for the `index`-th use of `purpose` (an epoch's order, a step's dropout): it needs
/// no position in a checkpoint, and any of them can be made without the ones before.
pub fn stream_at(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    keyed(seed, purpose, Some(index))
}

fn keyed(seed: u64, purpose: &str, index: Option<u64>) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("halter 2026 random stream");
    hasher.update(&seed.to_le_bytes());
    // The length keeps ("ab", index) apart from a purpose that happens to end in those bytes.
    hasher.update(&(purpose.len() as u64).to_le_bytes());
    hasher.update(purpose.as_bytes());
    if let Some(index) = index {
        hasher.update(&index.to_le_bytes());
    }
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// The streams of one run, made as they are first asked for.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    streams: BTreeMap<String, ChaCha8Rng>,
}

/// Where every stream stands: what a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomState {
    /// The run's seed.
    pub seed: u64,
    /// For each purpose, how many 32-bit words were drawn.
    pub positions: BTreeMap<String, u64>,
}

impl Random {
    /// The streams of `seed`, all at their beginning.
    pub fn new(seed: u64) -> Self {
        Self { seed, streams: BTreeMap::new() }
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream of `purpose`, where it was left.
    pub fn stream(&mut self, purpose: &str) -> &mut ChaCha8Rng {
        let seed = self.seed;
        self.streams.entry(purpose.to_string()).or_insert_with(|| stream(seed, purpose))
    }

    /// Where every stream stands.
    pub fn state(&self) -> RandomState {
        let position = |rng: &ChaCha8Rng| rng.get_word_pos() as u64;
        let positions = self.streams.iter().map(|(name, rng)| (name.clone(), position(rng)));
        RandomState { seed: self.seed, positions: positions.collect() }
    }

    /// The streams as [`Random::state`] saw them.
    ///
    /// # Errors
    /// When the state belongs to another seed than `seed`: the run would not be the same run.
    pub fn restore(seed: u64, state: &RandomState) -> Result<Self> {
        if state.seed != seed {
            let message = format!("seed `{seed}` differs from the checkpoint's `{}`", state.seed);
            return Err(Error::config(message).hint("resume with the seed the run began with"));
        }
        let mut random = Self::new(seed);
        for (purpose, &position) in &state.positions {
            random.stream(purpose).set_word_pos(u128::from(position));
        }
        Ok(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    fn draw(rng: &mut ChaCha8Rng, count: usize) -> Vec<u64> {
        (0..count).map(|_| rng.next_u64()).collect()
    }

    #[test]
    fn a_restored_stream_goes_on_where_it_was_left() {
        let mut random = Random::new(7);
        draw(random.stream("shuffle"), 5);
        // An odd number of 32-bit words, so that a position in whole blocks would be caught.
        random.stream("dropout").next_u32();
        let text = serde_json::to_string(&random.state()).unwrap();
        let mut again = Random::restore(7, &serde_json::from_str(&text).unwrap()).unwrap();
        for purpose in ["shuffle", "dropout", "new"] {
            assert_eq!(draw(random.stream(purpose), 40), draw(again.stream(purpose), 40));
        }
    }

    #[test]
    fn purposes_seeds_and_indices_give_different_numbers() {
        let mut firsts = vec![
            stream(1, "shuffle").next_u64(),
            stream(2, "shuffle").next_u64(),
            stream(1, "dropout").next_u64(),
            stream_at(1, "shuffle", 0).next_u64(),
            stream_at(1, "shuffle", 1).next_u64(),
        ];
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 5);
    }

    #[test]
    fn the_numbers_of_a_seed_never_change_between_versions() {
        // Pinned: a run of an older halter must be repeatable. Not an outside oracle.
        let first = stream(42, "shuffle").next_u64();
        assert_eq!(first, stream(42, "shuffle").next_u64());
        insta::assert_snapshot!(format!("{first:016x}"), @"5beb08c7bee62db1");
    }

    #[test]
    fn one_stream_does_not_disturb_another() {
        let mut lone = Random::new(3);
        let expected = draw(lone.stream("a"), 4);
        let mut both = Random::new(3);
        draw(both.stream("b"), 9);
        assert_eq!(draw(both.stream("a"), 4), expected);
    }

    #[test]
    fn a_state_of_another_seed_is_refused() {
        let state = Random::new(1).state();
        let error = Random::restore(2, &state).unwrap_err();
        assert_eq!(error.to_string(), "seed `2` differs from the checkpoint's `1`");
    }
}
