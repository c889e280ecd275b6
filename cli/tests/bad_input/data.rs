//! Tokenizers, templates and data.

use std::fs;

use serde_json::{Value, json};

use super::support::TINY;
use super::{MODEL, Table};

#[test]
fn wrong_tokenizers_templates_and_data_are_refused() {
    let mut t = Table::new();
    t.case(
        "tokenizer: not given",
        &["--init-from", "config.json", "--data", "m.jsonl"],
        &[],
        |_| {},
    );
    t.case("tokenizer: not there", TINY, &[], |p| {
        fs::remove_file(p.path("tok/tokenizer.json")).unwrap();
    });
    t.case("tokenizer: broken", TINY, &[], |p| p.write("tok/tokenizer.json", "{\"model\":"));
    t.model("tokenizer: ids beyond the model's embedding", |p| {
        let mut tokenizer: Value = serde_json::from_slice(&p.read("base/tokenizer.json")).unwrap();
        tokenizer["model"]["vocab"]["zzz"] = json!(600);
        p.write("base/tokenizer.json", tokenizer.to_string());
    });

    t.case("tokenizer: of another model", MODEL, &["--tokenizer", "tok/tokenizer.json"], |p| {
        let mut tokenizer: Value = serde_json::from_slice(&p.read("tok/tokenizer.json")).unwrap();
        tokenizer["model"]["vocab"]["zzz"] = json!(600);
        p.write("tok/tokenizer.json", tokenizer.to_string());
    });

    t.template(
        "template: refuses the order of roles",
        concat!(
            "{% for m in messages %}{% if m.role != 'assistant' %}",
            "{{ raise_exception('roles must alternate, beginning with assistant') }}{% endif %}",
            "{{ m.content }}<|im_end|>{% endfor %}"
        ),
    );
    t.template("template: a syntax error", "{% for m in messages %}{{ m.content }}");
    t.template(
        "template: a loop without end",
        concat!(
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}",
            "{% endfor %}{% endfor %}"
        ),
    );
    t.template(
        "template: calls itself without end",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    );
    t.template(
        "template: no end of turn",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    );
    t.template("template: an unknown filter", "{{ messages | shout }}");
    t.case("template: none", TINY, &[], |p| {
        fs::remove_file(p.path("tok/chat_template.jinja")).unwrap();
    });

    let chat = |messages: Value| format!("{}\n", json!({ "messages": messages }));
    let fine =
        chat(json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]));
    t.data("data: a broken line", &[], format!("{fine}{fine}{{\"messages\": [\n{fine}"));
    t.data(
        "data: content of the wrong type",
        &[],
        fine.clone() + &chat(json!([{"role": "user", "content": 7}])),
    );
    t.data("data: an empty conversation", &[], fine.clone() + &chat(json!([])));
    t.data(
        "data: nothing to train",
        &[],
        fine.clone() + &chat(json!([{"role": "user", "content": "Q"}])),
    );
    t.data(
        "data: no role",
        &[],
        fine.clone() + &chat(json!([{"content": "Q"}, {"role": "assistant", "content": "A"}])),
    );
    t.data(
        "data: a special token in a question",
        &[],
        fine.clone()
            + &chat(json!([
        {"role": "user", "content": "Q<|im_end|>"}, {"role": "assistant", "content": "A"}])),
    );
    t.data("data: a row of another format", &[], fine.clone() + "{\"text\": \"Once\"}\n");
    t.data("data: an array where a row should be", &[], "[1, 2]\n");
    t.data("data: keys that nobody knows", &[], "{\"question\": \"Q\", \"reply\": \"A\"}\n");
    t.data("data: empty", &[], "");
    t.data("data: not UTF-8", &[], b"{\"text\": \"\xff\xfe\"}\n");
    t.data(
        "data: token ids beyond the vocabulary",
        &[],
        "{\"input_ids\": [1, 2, 4000], \"completion_mask\": [0, 1, 1]}\n",
    );
    t.data(
        "data: a mask of another length",
        &[],
        "{\"input_ids\": [1, 2, 3], \"completion_mask\": [0, 1]}\n",
    );
    t.options("data: rows that are too long", &["--max-seq-len", "8"]);
    t.options("data: all rows dropped", &["--max-seq-len", "8", "--overlong", "drop"]);
    t.options(
        "data: all rows dropped in every epoch",
        &["--max-seq-len", "8", "--overlong", "drop", "--max-steps", "9"],
    );
    t.options(
        "eval-data: all rows dropped",
        &["--max-seq-len", "40", "--overlong", "drop", "--eval-data", "t.jsonl"],
    );
    t.options("data: a file that is not there", &["--data", "none.jsonl"]);
    t.options("data: a weight of zero", &["--data", "t.jsonl:0"]);
    t.options("data: a renamed column without its name", &["--column", "prompt"]);
    t.case("template: not there", TINY, &["--chat-template", "none.jinja"], |_| {});
    t.options("data: an unknown format", &["--format", "vicuna"]);
    t.options("data: the rows are not of the stated format", &["--format", "preference"]);
    t.case("data: an empty directory", TINY, &["--data", "none"], |p| {
        fs::create_dir(p.path("none")).unwrap();
    });
    t.case("data: not Parquet", TINY, &["--data", "x.parquet"], |p| {
        p.write("x.parquet", "PAR1PAR1PAR1")
    });
    let answered = ["--eval-generate", "2", "--eval-data"];
    t.options("eval-generate: no prompts", &[&answered[..], &["t.jsonl"]].concat());
    t.case("eval-generate: no prompt", TINY, &[&answered[..], &["m.jsonl"]].concat(), |p| {
        let template = p.text("tok/chat_template.jinja");
        let refusal = "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}";
        p.write("tok/chat_template.jinja", refusal.to_string() + &template);
    });
    t.case("eval-data: a wrong row", TINY, &["--eval-data", "e.jsonl"], |p| {
        p.write("e.jsonl", chat(json!([])));
    });
    println!("{} wrong texts and data", t.cases);
    insta::assert_snapshot!("data", t.text);
}
