//! Records to ranked completions: what is compared, and what is left out.

use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::{Encoded, TokenCount};
use halter_core::data::record::{Comparison, Origin, Record};
use halter_core::train::method::TrainRow;
use halter_core::{Error, Result};
use serde_json::Value;

use super::config::RewardOptions;
use super::similarity::is_alike;
use super::strength::Strength;

/// A prompt, its completions, and which of them are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedRow {
    /// The completions, best first.
    pub row: BranchedRow,
    /// Indices of a better completion and a worse one; at least one pair.
    pub pairs: Vec<(usize, usize)>,
    /// By how much the better one's score should be higher.
    pub margin: f64,
}

impl TokenCount for RankedRow {
    fn tokens(&self) -> usize {
        self.row.tokens()
    }

    /// One token of each completion is scored.
    fn trained_tokens(&self) -> usize {
        self.row.branches.len()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.row.prompt_is_prefix
    }
}

impl TrainRow for RankedRow {
    fn origin(&self) -> &Origin {
        &self.row.origin
    }

    /// None: it is not learned which token comes next.
    fn trained_ids(&self) -> impl Iterator<Item = u32> {
        std::iter::empty()
    }
}

/// What a row says of its comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    strength: Option<Strength>,
    margin: f64,
}

impl Judgement {
    /// That of a record.
    ///
    /// # Errors
    /// A strength that is not known, or missing where the options ask for it; a margin that is not a
    /// number.
    pub fn of(record: &Record, origin: &Origin, options: &RewardOptions) -> Result<Self> {
        let none = Comparison::default();
        let comparison = match record {
            Record::Preference { comparison, .. }
            | Record::Ranked { comparison, .. }
            | Record::TokenizedPreference { comparison, .. } => comparison,
            _ => &none,
        };
        Self::read(comparison, options).map_err(|error| error.at(&*origin.path, origin.line))
    }

    fn read(comparison: &Comparison, options: &RewardOptions) -> Result<Self> {
        let asks = options.min_strength.is_some() || options.strength_margin > 0.0;
        let strength: Option<Strength> = match &comparison.strength {
            _ if !asks => None,
            Some(Value::String(text)) => Some(text.parse()?),
            Some(other) => {
                return Err(Error::data(format!("`strength` is `{other}`: expected a text")));
            }
            None => {
                return Err(Error::data("the row has no `strength`").hint(
                    "leave out `--min-strength` and `--strength-margin`, or name the column with \
                     `--column strength=…`",
                ));
            }
        };
        let margin = match &comparison.margin {
            Some(value) => value.as_f64().ok_or_else(|| {
                Error::data(format!("`margin` is `{value}`: expected a number"))
                    .hint("take the column out, or rename it")
            })?,
            None => strength
                .map_or(0.0, |strength| options.strength_margin * strength.share_of_margin()),
        };
        Ok(Self { strength, margin })
    }
}

/// What becomes of encoded completions. Rows that are too weak and pairs that are too alike are left
/// out; so is a row of which no pair remains.
pub fn rank(
    encoded: Encoded<BranchedRow>,
    judgement: Judgement,
    options: &RewardOptions,
) -> Encoded<Vec<RankedRow>> {
    let (row, cut) = match encoded {
        Encoded::Dropped { reason, tokens } => return Encoded::Dropped { reason, tokens },
        Encoded::Kept(row) => (row, None),
        Encoded::Cut { kept, reason, tokens } => (kept, Some((reason, tokens))),
    };
    let tokens = row.tokens();
    if judgement.strength < options.min_strength {
        return Encoded::Dropped { reason: "weaker than min_strength".into(), tokens };
    }
    let count = row.branches.len();
    let all =
        || (0..count).flat_map(|better| (better + 1..count).map(move |worse| (better, worse)));
    let differs = |&(better, worse): &(usize, usize)| {
        let [better, worse] = [better, worse].map(|index| &row.branches[index].tokens);
        !is_alike(better, worse, options.max_similarity)
    };
    let pairs: Vec<_> = all().filter(differs).collect();
    if pairs.is_empty() {
        return Encoded::Dropped { reason: "near-identical completions".into(), tokens };
    }
    let alike = (pairs.len() < all().count()).then_some("some completions are near-identical");
    let kept = vec![RankedRow { row, pairs, margin: judgement.margin }];
    match (cut, alike) {
        (None, None) => Encoded::Kept(kept),
        (None, Some(alike)) => Encoded::Cut { kept, reason: alike.into(), tokens },
        (Some((reason, tokens)), None) => Encoded::Cut { kept, reason, tokens },
        (Some((reason, tokens)), Some(alike)) => {
            Encoded::Cut { kept, reason: format!("{reason}; {alike}"), tokens }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use std::sync::Arc;

    use halter_core::data::branched::Branch;
    use serde_json::json;

    use super::*;

    fn origin() -> Origin {
        Origin { path: Arc::new("pairs.jsonl".into()), line: 3 }
    }

    fn encoded(completions: &[&[u32]]) -> Encoded<BranchedRow> {
        let branch =
            |tokens: &&[u32]| Branch { tokens: tokens.to_vec(), mask: vec![true; tokens.len()] };
        Encoded::Kept(BranchedRow {
            origin: origin(),
            prompt: vec![1, 2],
            branches: completions.iter().map(branch).collect(),
            prompt_is_prefix: true,
        })
    }

    fn judgement(strength: Value, margin: Value, options: &RewardOptions) -> Result<Judgement> {
        let column = |value: Value| Some(value).filter(|value| !value.is_null());
        let comparison = Comparison { strength: column(strength), margin: column(margin) };
        let (prompt_ids, chosen_ids, rejected_ids) = (vec![1], vec![2], vec![3]);
        let record =
            Record::TokenizedPreference { prompt_ids, chosen_ids, rejected_ids, comparison };
        Judgement::of(&record, &origin(), options)
    }

    #[test]
    fn every_ordered_pair_is_compared_but_for_those_that_are_alike() {
        let options = RewardOptions { max_similarity: 0.75, ..RewardOptions::default() };
        let plain = judgement(Value::Null, Value::Null, &options).unwrap();
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[5, 6, 7, 8], &[5, 6, 7, 9], &[4]);
        let fate = |completions: &[&[u32]]| rank(encoded(completions), plain, &options);
        let Encoded::Kept(rows) = fate(&[a, c]) else { unreachable!() };
        assert_eq!(
            (&rows[0].pairs[..], rows[0].tokens(), rows[0].trained_tokens()),
            (&[(0, 1)][..], 7, 2)
        );
        let Encoded::Cut { kept, reason, .. } = fate(&[a, b, c]) else { unreachable!() };
        assert_eq!(
            (&kept[0].pairs[..], &*reason),
            (&[(0, 2), (1, 2)][..], "some completions are near-identical")
        );
        let dropped = Encoded::Dropped { reason: "near-identical completions".into(), tokens: 10 };
        assert_eq!(fate(&[a, b]), dropped);
        let cut = |completions: &[&[u32]]| {
            let kept = encoded(completions).into_kept().unwrap();
            let cut = Encoded::Cut { kept, reason: "too long".into(), tokens: 20 };
            match rank(cut, plain, &options) {
                Encoded::Cut { reason, tokens: 20, .. } => reason,
                other => unreachable!("{other:?}"),
            }
        };
        assert_eq!(cut(&[a, c]), "too long");
        assert_eq!(cut(&[a, b, c]), "too long; some completions are near-identical");
    }

    #[test]
    fn weak_rows_are_dropped_and_strength_can_be_a_margin() {
        let options = RewardOptions {
            min_strength: Some(Strength::Better),
            strength_margin: 3.0,
            ..RewardOptions::default()
        };
        for (strength, margin, kept) in [
            (json!("significantly better"), Value::Null, Some(3.0)),
            (json!("better"), Value::Null, Some(2.0)),
            (json!("better"), json!(0.25), Some(0.25)),
            (json!("slightly better"), Value::Null, None),
        ] {
            let judgement = judgement(strength, margin, &options).unwrap();
            let rows = rank(encoded(&[&[5], &[6]]), judgement, &options).into_kept();
            assert_eq!(rows.map(|rows| rows[0].margin), kept);
        }
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let options =
            RewardOptions { min_strength: Some(Strength::Better), ..RewardOptions::default() };
        for (strength, margin, message) in [
            (Value::Null, Value::Null, "pairs.jsonl:3: the row has no `strength`"),
            (json!(3), Value::Null, "pairs.jsonl:3: `strength` is `3`: expected a text"),
            (
                json!("better"),
                json!("much"),
                "pairs.jsonl:3: `margin` is `\"much\"`: expected a number",
            ),
        ] {
            let error = judgement(strength, margin, &options).unwrap_err().to_string();
            assert_eq!(error, message);
        }
        // What nobody asks for is not looked at.
        assert!(judgement(json!(3), Value::Null, &RewardOptions::default()).is_ok());
    }
}
