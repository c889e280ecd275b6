//! GGUF files that are truncated, that lie, or that mean something unknown.

use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::gguf::Gguf;
use halter_core::text::gguf_tokenizer;

use super::super::fixtures::{GgufBuilder, le_bytes, tiny_gguf};
use super::super::gguf::sentencepiece;
use super::Table;

#[test]
fn wrong_gguf_headers() {
    let mut table = Table::new();
    let mut case = |name: &str, file: Vec<u8>| table.case(name, None, Gguf::from_bytes(file));
    let good = tiny_gguf().build();
    case("empty", vec![]);
    case("another file", b"PK\x03\x04 and so on".to_vec());
    let versioned = |version: u32| GgufBuilder { version, ..GgufBuilder::new() }.build();
    case("version 1", versioned(1));
    case("version 4", versioned(4));
    case("big-endian", versioned(3u32.swap_bytes()));
    case("cut after the version", good[..8].to_vec());
    case("cut in the metadata", good[..300].to_vec());
    case("cut in the data", good[..good.len() - 300].to_vec());
    let counts =
        |tensors, entries| GgufBuilder { counts: Some((tensors, entries)), ..tiny_gguf() }.build();
    case("2^60 tensors", counts(1 << 60, 5));
    case("2^60 metadata entries", counts(5, 1 << 60));
    case("a few tensors too many", counts(1000, 20));
    let build = |change: &dyn Fn(&mut GgufBuilder)| {
        let mut builder = GgufBuilder::new();
        change(&mut builder);
        builder.build()
    };
    let word = |number: u64| number.to_le_bytes().to_vec();
    case(
        "a string of 2^62 bytes",
        build(&|b| {
            b.raw("k", 8, &word(1 << 62));
        }),
    );
    case(
        "an array of 2^62 numbers",
        build(&|b| {
            b.array("k", 4, 1 << 62, &[]);
        }),
    );
    case(
        "an array longer than the file",
        build(&|b| {
            b.array("k", 12, 40, &[0; 64]);
        }),
    );
    case(
        "a string in an array of 2^62 bytes",
        build(&|b| {
            b.array("k", 8, 1, &word(1 << 62));
        }),
    );
    let mut nested = Vec::new();
    for _ in 0..2000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    case(
        "arrays nested 2000 deep",
        build(&|b| {
            b.array("k", 9, 1, &nested);
        }),
    );
    case(
        "an unknown metadata type",
        build(&|b| {
            b.raw("k", 77, &[0; 64]);
        }),
    );
    case(
        "an unknown type in an array",
        build(&|b| {
            b.array("k", 77, 1, &[0; 64]);
        }),
    );
    case("a key that is not UTF-8", {
        let mut file = build(&|b| {
            b.u32("kkkk", 1);
        });
        file[32] = 0xff;
        file
    });
    case(
        "text that is not UTF-8",
        build(&|b| {
            b.raw("k", 8, &[&word(2)[..], &[0xc3, 0x28]].concat());
        }),
    );
    case(
        "one key twice",
        build(&|b| {
            b.u32("k", 1).u32("k", 2);
        }),
    );
    case(
        "an alignment of 3",
        build(&|b| {
            b.u32("general.alignment", 3);
        }),
    );
    case(
        "an alignment in words",
        build(&|b| {
            b.string("general.alignment", "wide");
        }),
    );
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let mut builder = GgufBuilder::new();
        builder.data = vec![0; 256];
        builder.tensors.push(("t".into(), dims.to_vec(), kind, offset));
        builder.build()
    };
    case("no dimensions", tensor(&[], 0, 0));
    case("nine dimensions", tensor(&[1; 9], 0, 0));
    case("an empty dimension", tensor(&[4, 0], 0, 0));
    case("dimensions that overflow", tensor(&[1 << 40, 1 << 40], 0, 0));
    case("a tensor type of the future", tensor(&[32], 99, 0));
    case("a type that is not supported", tensor(&[256], 16, 0));
    case("rows of half a block", tensor(&[48], 2, 0));
    case("a tensor beyond the file", tensor(&[64], 0, 32));
    case("a tensor at 2^63", tensor(&[4], 0, 1 << 63));
    case("a tensor off its alignment", tensor(&[4], 0, 4));
    case(
        "tensors that overlap",
        build(&|b| {
            b.data = vec![0; 256];
            b.tensors.push(("a".into(), vec![32], 0, 0));
            b.tensors.push(("b".into(), vec![8], 0, 96));
        }),
    );
    case(
        "one tensor twice",
        build(&|b| {
            b.tensor("a", &[1], 0, &[0; 4]).tensor("a", &[1], 0, &[0; 4]);
        }),
    );
    insta::assert_snapshot!(table.finish(35));
}

#[test]
fn gguf_files_that_mean_something_unknown() {
    let mut table = Table::new();
    let mut case = |name: &str, change: &dyn Fn(&mut GgufBuilder)| {
        let mut builder = tiny_gguf();
        change(&mut builder);
        let result = Gguf::from_bytes(builder.build()).and_then(|gguf| {
            let config = gguf.model_config()?;
            WeightFiles::from_gguf(gguf)?.check(&config)
        });
        table.case(name, None, result);
    };
    let llama = |name: &str| format!("llama.{name}");
    case("no architecture", &|b| {
        b.without("general.architecture");
    });
    case("an unknown architecture", &|b| {
        b.without("general.architecture").string("general.architecture", "gemma2");
    });
    case("an architecture that is a number", &|b| {
        b.without("general.architecture").u32("general.architecture", 1);
    });
    case("no width", &|b| {
        b.without(&llama("embedding_length"));
    });
    case("a width of nothing", &|b| {
        b.without(&llama("embedding_length")).u32(&llama("embedding_length"), 0);
    });
    case("more layers than tensors", &|b| {
        b.without(&llama("block_count")).u32(&llama("block_count"), 4_000_000);
    });
    case("a layer more than there is", &|b| {
        b.without(&llama("block_count")).u32(&llama("block_count"), 3);
    });
    case("heads that differ between layers", &|b| {
        let counts = [4u32.to_le_bytes(), 2u32.to_le_bytes()].concat();
        b.without(&llama("attention.head_count_kv")).array(
            &llama("attention.head_count_kv"),
            4,
            2,
            &counts,
        );
    });
    case("keys and values of different widths", &|b| {
        b.without(&llama("attention.value_length")).u32(&llama("attention.value_length"), 32);
    });
    case("part of a head rotated", &|b| {
        b.without(&llama("rope.dimension_count")).u32(&llama("rope.dimension_count"), 8);
    });
    case("yarn", &|b| {
        b.string(&llama("rope.scaling.type"), "yarn").f32(&llama("rope.scaling.factor"), 4.0);
    });
    case("experts", &|b| {
        b.u32(&llama("expert_count"), 8);
    });
    case("no epsilon", &|b| {
        b.without(&llama("attention.layer_norm_rms_epsilon"));
    });
    case("a rotary table of another length", &|b| {
        b.tensor("rope_freqs.weight", &[5], 0, &le_bytes(&[1.0; 5]));
    });
    case("a rotary table of its own", &|b| {
        b.tensor("rope_freqs.weight", &[8], 0, &le_bytes(&[1., 2., 3., 4., 5., 6., 7., 8.]));
    });
    case("an unknown tensor", &|b| {
        b.tensor("blk.0.ffn_gate_inp.weight", &[4], 0, &[0; 16]);
    });
    case("a layer number in disguise", &|b| {
        b.tensor("blk.00.attn_q.weight", &[4], 0, &[0; 16]);
    });
    case("a bias for one matrix", &|b| {
        b.tensor("blk.0.attn_q.bias", &[64], 0, &[0; 256]);
    });
    case("no embedding", &|b| b.tensors.retain(|t| t.0 != "token_embd.weight"));
    case("a missing norm", &|b| b.tensors.retain(|t| t.0 != "blk.1.ffn_norm.weight"));
    case("an end token outside of the vocabulary", &|b| {
        b.without("tokenizer.ggml.eos_token_id").u32("tokenizer.ggml.eos_token_id", 999);
    });
    insta::assert_snapshot!(table.finish(20));
}

#[test]
fn tokenizers_that_cannot_be_rebuilt() {
    let mut table = Table::new();
    let mut case = |name: &str, builder: GgufBuilder| {
        let result =
            Gguf::from_bytes(builder.build()).and_then(|gguf| gguf_tokenizer::from_gguf(&gguf));
        table.case(name, None, result);
    };
    let change = |change: &dyn Fn(&mut GgufBuilder)| {
        let mut builder = tiny_gguf();
        change(&mut builder);
        builder
    };
    case(
        "no tokenizer",
        change(&|b| {
            b.without("tokenizer.ggml.model");
        }),
    );
    case(
        "an unknown model",
        change(&|b| {
            b.without("tokenizer.ggml.model").string("tokenizer.ggml.model", "bert");
        }),
    );
    case(
        "an unknown way of splitting",
        change(&|b| {
            b.without("tokenizer.ggml.pre").string("tokenizer.ggml.pre", "gpt-9");
        }),
    );
    case(
        "no tokens",
        change(&|b| {
            b.without("tokenizer.ggml.tokens");
        }),
    );
    case(
        "tokens that are numbers",
        change(&|b| {
            b.without("tokenizer.ggml.tokens").array("tokenizer.ggml.tokens", 4, 1, &[0; 4]);
        }),
    );
    case(
        "too few types",
        change(&|b| {
            b.without("tokenizer.ggml.token_type").array(
                "tokenizer.ggml.token_type",
                5,
                1,
                &[0; 4],
            );
        }),
    );
    case(
        "no merges",
        change(&|b| {
            b.without("tokenizer.ggml.merges");
        }),
    );
    let merges = |merge: &str| {
        let merge = vec![merge.to_string()];
        change(&move |b| {
            b.without("tokenizer.ggml.merges").strings("tokenizer.ggml.merges", &merge);
        })
    };
    case("a merge of one", merges("th"));
    case("a merge of three", merges("t h e"));
    case("a merge of strangers", merges("zq xj"));
    case(
        "one token twice",
        change(&|b| {
            let tokens = vec!["a".to_string(), "a".to_string()];
            let types = [1i32.to_le_bytes(), 1i32.to_le_bytes()].concat();
            b.without("tokenizer.ggml.tokens").strings("tokenizer.ggml.tokens", &tokens);
            b.without("tokenizer.ggml.token_type").array("tokenizer.ggml.token_type", 5, 2, &types);
        }),
    );
    case(
        "a vocabulary without most bytes",
        change(&|b| {
            let tokens: Vec<String> = ["a", "b", "<|bos|>"].map(String::from).to_vec();
            let types: Vec<u8> = [1i32, 1, 3].iter().flat_map(|t| t.to_le_bytes()).collect();
            b.without("tokenizer.ggml.tokens").strings("tokenizer.ggml.tokens", &tokens);
            b.without("tokenizer.ggml.token_type").array("tokenizer.ggml.token_type", 5, 3, &types);
            b.without("tokenizer.ggml.merges").strings("tokenizer.ggml.merges", &[]);
            b.without("tokenizer.ggml.bos_token_id").without("tokenizer.ggml.eos_token_id");
        }),
    );
    case(
        "a BOS that is not there",
        change(&|b| {
            b.without("tokenizer.ggml.bos_token_id").u32("tokenizer.ggml.bos_token_id", 4000);
        }),
    );
    case(
        "a flag that is a number",
        change(&|b| {
            b.u32("tokenizer.ggml.add_bos_token", 1);
        }),
    );
    let pieces = |pieces: &[(&str, f32)]| sentencepiece(pieces);
    case("a score that is not a number", pieces(&[("▁", 0.0), ("a", f32::NAN)]));
    case("a piece of 2000 letters", pieces(&[(&"a".repeat(2000), 0.0)]));
    let mut scores = pieces(&[("▁", 0.0)]);
    scores.without("tokenizer.ggml.scores");
    case("no scores", scores);
    insta::assert_snapshot!(table.finish(17));
}
