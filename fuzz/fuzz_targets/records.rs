//! Any bytes as JSON Lines and as a JSON document: every row is read, detected and parsed in every
//! format, and nothing may panic, hang, or give a mask of another length than its tokens.

#![no_main]

use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::data::format::Format;
use halter_core::data::parse::parse;
use halter_core::data::reader::DataFile;
use halter_core::data::record::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let files =
        [DataFile::from_jsonl("rows.jsonl", bytes), DataFile::from_json("rows.json", bytes)];
    for file in files.into_iter().flatten() {
        for row in 0..file.len() {
            let Ok(object) = file.row(row) else { continue };
            let detected = Format::of_row(&object);
            for format in Format::ALL {
                match parse(format, object.clone()) {
                    Ok(Record::Tokenized { input_ids, completion_mask }) => {
                        assert_eq!(input_ids.len(), completion_mask.len());
                    }
                    Ok(Record::Chat { messages, .. }) => assert!(!messages.is_empty()),
                    Ok(Record::Ranked { completions, .. }) => assert!(completions.len() >= 2),
                    Ok(_) => {}
                    Err(error) => assert!(!error.message().is_empty(), "{detected:?}"),
                }
            }
        }
        if let Ok(dataset) = Dataset::from_files("rows", vec![file], &DataOptions::default()) {
            assert!(!dataset.to_string().is_empty());
        }
    }
});
