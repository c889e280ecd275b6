//! Preference pairs and ranked lists to tokens: what is shared, what counts, what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

mod text_support;

use std::sync::Arc;

use halter_core::Result;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::{Encoded, TokenCount};
use halter_core::data::record::{Comparison, Message, Origin, Record, Turn};
use halter_core::text::branches::encode_branches;
use halter_core::text::encode::{EncodeOptions, Overlong};
use halter_core::text::template::ChatTemplate;
use halter_core::text::tokenizer::Tokenizer;
use text_support::{source, template, tokenizer};

fn chatml() -> (Tokenizer, ChatTemplate) {
    let tokenizer = tokenizer("tiny_chatml");
    let template = template(&source("smollm2"), &tokenizer);
    (tokenizer, template)
}

fn encode(record: &Record, options: &EncodeOptions) -> Result<Encoded<BranchedRow>> {
    let (tokenizer, template) = chatml();
    let origin = Origin { path: Arc::new("pairs.jsonl".into()), line: 7 };
    encode_branches(record, &origin, &tokenizer, Some(&template), options)
}

fn messages(turns: &[(&str, &str)]) -> Turn {
    Turn::Messages(turns.iter().map(|(role, content)| Message::new(role, content)).collect())
}

fn text(row: &[u32]) -> String {
    chatml().0.decode(row, false).unwrap()
}

fn counted(row: &BranchedRow) -> Vec<String> {
    let of = |branch: &halter_core::data::branched::Branch| {
        let ids = branch.tokens.iter().zip(&branch.mask).filter(|(_, counts)| **counts);
        text(&ids.map(|(&id, _)| id).collect::<Vec<_>>())
    };
    row.branches.iter().map(of).collect()
}

#[test]
fn the_prompt_is_shared_and_the_answers_count_with_their_end() {
    let explicit = Record::Preference {
        prompt: Some(messages(&[("user", "two and two?")])),
        chosen: messages(&[("assistant", "four")]),
        rejected: messages(&[("assistant", "five")]),
        comparison: Comparison::default(),
    };
    let implicit = Record::Preference {
        prompt: None,
        chosen: messages(&[("user", "two and two?"), ("assistant", "four")]),
        rejected: messages(&[("user", "two and two?"), ("assistant", "five")]),
        comparison: Comparison::default(),
    };
    let ranked = Record::Ranked {
        prompt: messages(&[("user", "two and two?")]),
        completions: vec![
            messages(&[("assistant", "four")]),
            messages(&[("assistant", "five")]),
            messages(&[("assistant", "a fish")]),
        ],
        comparison: Comparison::default(),
    };
    let row = |record: &Record| encode(record, &EncodeOptions::default()).unwrap().into_kept();
    let pair = row(&explicit).unwrap();
    let prompt = text(&pair.prompt);
    assert!(prompt.contains("two and two?") && prompt.ends_with("assistant\n"), "{prompt:?}");
    assert_eq!(counted(&pair), ["four<|im_end|>", "five<|im_end|>"]);
    assert!(pair.prompt_is_prefix);
    assert_eq!(row(&implicit).unwrap(), pair);
    let ranked = row(&ranked).unwrap();
    assert_eq!(ranked.prompt, pair.prompt);
    assert_eq!(counted(&ranked), ["four<|im_end|>", "five<|im_end|>", "a fish<|im_end|>"]);
    assert_eq!(ranked.tokens(), pair.tokens() + ranked.branches[2].tokens.len());
}

#[test]
fn plain_texts_share_what_they_begin_with() {
    let record = Record::Preference {
        prompt: None,
        chosen: Turn::Text("two and two is four".into()),
        rejected: Turn::Text("two and two is five".into()),
        comparison: Comparison::default(),
    };
    let row = encode(&record, &EncodeOptions::default()).unwrap().into_kept().unwrap();
    assert_eq!(text(&row.prompt), "two and two is");
    let [chosen, rejected] = &counted(&row)[..] else { panic!() };
    assert!(chosen.starts_with(" f") && chosen != rejected, "{chosen:?} {rejected:?}");
}

#[test]
fn ids_are_taken_as_they_are() {
    let record = |chosen: &[u32]| Record::TokenizedPreference {
        prompt_ids: vec![5, 6],
        chosen_ids: chosen.to_vec(),
        rejected_ids: vec![8],
        comparison: Comparison::default(),
    };
    let row = encode(&record(&[7, 9]), &EncodeOptions::default()).unwrap().into_kept().unwrap();
    assert_eq!(
        (row.prompt.as_slice(), row.branches[0].tokens.as_slice()),
        (&[5, 6][..], &[7, 9][..])
    );
    assert_eq!(row.counted().collect::<Vec<_>>(), [2, 1]);
    let options = EncodeOptions { vocab_size: Some(9), ..EncodeOptions::default() };
    let error = encode(&record(&[7, 9]), &options).unwrap_err().to_string();
    assert_eq!(error, "pairs.jsonl:7: `chosen_ids[1]` is `9`, beyond the vocabulary of `9`");
}

#[test]
fn what_teaches_nothing_is_refused() {
    let pair = |chosen: &str, rejected: &str| Record::Preference {
        prompt: Some(messages(&[("user", "two?")])),
        chosen: messages(&[("assistant", chosen)]),
        rejected: messages(&[("assistant", rejected)]),
        comparison: Comparison::default(),
    };
    let ids = |chosen: &[u32]| Record::TokenizedPreference {
        prompt_ids: vec![5],
        chosen_ids: chosen.to_vec(),
        rejected_ids: vec![8],
        comparison: Comparison::default(),
    };
    let mixed = Record::Preference {
        prompt: None,
        chosen: Turn::Text("a".into()),
        rejected: messages(&[("assistant", "b")]),
        comparison: Comparison::default(),
    };
    for (record, message) in [
        (pair("four", "four"), "all completions of the row are the same"),
        (ids(&[]), "completion `1` has no token to count"),
        (ids(&[8]), "all completions of the row are the same"),
        (mixed, "one of `chosen` and `rejected` is text and the other is messages"),
        (Record::Text { text: "a".into() }, "a row without two completions to compare"),
    ] {
        let error = encode(&record, &EncodeOptions::default()).unwrap_err().to_string();
        assert_eq!(error, format!("pairs.jsonl:7: {message}"));
    }
}

#[test]
fn long_rows_follow_their_policy() {
    let record = |rejected: Vec<u32>| Record::TokenizedPreference {
        prompt_ids: vec![5, 6],
        chosen_ids: vec![7, 9, 9, 9],
        rejected_ids: rejected,
        comparison: Comparison::default(),
    };
    let fate = |overlong, rejected| {
        let options = EncodeOptions { max_seq_len: Some(4), overlong, ..EncodeOptions::default() };
        encode(&record(rejected), &options)
    };
    let refused = fate(Overlong::Refuse, vec![8]).unwrap_err().to_string();
    assert!(refused.contains("have `6` tokens, more than `max_seq_len` of `4`"), "{refused}");
    assert!(matches!(fate(Overlong::Drop, vec![8]), Ok(Encoded::Dropped { tokens: 6, .. })));
    assert!(matches!(fate(Overlong::Split, vec![8]), Ok(Encoded::Dropped { .. })));
    let Ok(Encoded::Cut { kept, tokens: 6, .. }) = fate(Overlong::Truncate, vec![8]) else {
        panic!()
    };
    assert_eq!(kept.branches[0].tokens, [7, 9]);
    // The same up to where it is cut.
    let same = fate(Overlong::Truncate, vec![7, 9, 9, 8]);
    assert!(matches!(same, Ok(Encoded::Dropped { .. })), "{same:?}");
}
