//! The logits of a model, perhaps with an adapter, in a file that other programs can compare with:
//! `input_ids.N (tokens,)` and `logits.N (tokens, vocabulary)` of a few sentences.
//!
//! `cargo run --release --example logits -- MODEL OUT.safetensors [ADAPTER]`

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use halter::candle::{Device, Tensor, safetensors};
use halter::{Base, PackedBatch, Source, SourceSpec};

const TEXTS: [&str; 3] = [
    "Tom has 3 apples and buys 4 more. He has 3 + 4 = 7 apples.",
    "user\nWhich animal carries packs over the Andes?",
    "fn main() { println!(\"halter\"); }",
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, out, adapter) = match args.as_slice() {
        [model, out] => (model, out, None),
        [model, out, adapter] => (model, out, Some(adapter)),
        _ => bail!("expected MODEL OUT.safetensors [ADAPTER]"),
    };
    let mut source =
        Source::open(&SourceSpec { model: Some(model.clone()), ..SourceSpec::default() })?;
    let mut model = source.decoder(Base::Frozen, &Device::Cpu, 0)?;
    if let Some(adapter) = adapter {
        model.load_lora(&source.adapter(Path::new(adapter))?)?;
    }
    let mut tensors = HashMap::new();
    for (n, text) in TEXTS.iter().enumerate() {
        let ids = source.tokenizer.encode(text, false)?.ids;
        let mut builder = PackedBatch::builder();
        builder.row(&ids);
        tensors.insert(format!("logits.{n}"), model.logits(&builder.build()?)?);
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        tensors.insert(format!("input_ids.{n}"), Tensor::new(ids, &Device::Cpu)?);
    }
    safetensors::save(&tensors, out).with_context(|| format!("could not write {out}"))?;
    println!("{} texts, {} parameters: {out}", TEXTS.len(), model.params().len());
    Ok(())
}
