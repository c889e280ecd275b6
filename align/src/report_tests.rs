use std::fs;

use serde_json::json;

use super::*;
use crate::cache::Check;
use crate::inputs::Checksums;
use crate::recipe::{Recipe, Stage};
use crate::{Commands, Prediction};

struct Any;

impl Commands for Any {
    fn version(&self, _: &mut Checksums) -> Result<String> {
        Ok("1".into())
    }

    fn check(&self, _: &Stage, _: &Recipe) -> Result<()> {
        Ok(())
    }

    fn predict(&self, _: &kind::Kind, _: &toml::Table, _: bool) -> Result<Option<Prediction>> {
        Ok(None)
    }
}

fn done(plan: &mut Plan, name: &str, summary: Value) {
    let at = plan.graph.nodes.iter().position(|node| node.name == name).unwrap();
    let done = Done { name: name.into(), seconds: 2.0, summary, ..Done::default() };
    plan.steps[at].status = Status::Done(Box::new(done));
}

#[test]
fn the_page_tells_what_is_done_and_escapes_what_models_say() {
    let dir = tempfile::tempdir().unwrap();
    let text = "model = \"a/<b>\"\n[eval]\ntask = [\"t\"]\n[[stage]]\nname = \"sft\"\n[[stage]]\nname = \"sample\"\nmodel = \"{sft}\"\n";
    let mut recipe = Recipe::parse(text, Path::new("r.toml")).unwrap();
    recipe.output = dir.path().to_path_buf();
    let mut plan = Plan::new(recipe, &Any, Check::Quick).unwrap();
    let page = render(&plan).unwrap();
    assert!(page.contains("0 of 5 stages") && !page.contains("<h2>Accuracy</h2>"), "{page}");
    let tasks = |acc: f64| json!({ "tasks": [{ "task": "math", "acc": acc, "acc_stderr": 0.01 }] });
    done(&mut plan, "eval-base", tasks(0.2));
    done(&mut plan, "sft", json!({}));
    done(&mut plan, "eval-sft", tasks(0.615));
    done(
        &mut plan,
        "drift-sft",
        json!({ "per_completion": 3.25, "per_completion_stderr": 0.5, "per_token": 0.1 }),
    );
    done(
        &mut plan,
        "sample",
        json!({ "figures": { "histogram": [0.0, 1.0, [3, 9]], "acceptance": [0.75, 0.1] } }),
    );
    for name in ["eval-base", "eval-sft"] {
        let at = plan.graph.nodes.iter().position(|node| node.name == name).unwrap();
        fs::create_dir_all(&plan.steps[at].directory).unwrap();
        let line = json!({ "prompt": [{ "role": "user", "content": "1 < 2?" }],
            "completions": [{ "text": "<script>x</script>", "score": 1.0, "num_tokens": 7 }] });
        // A task of choices before the one of completions.
        let choices = plan.steps[at].directory.join("samples-arc.jsonl");
        fs::write(choices, "{\"context\": \"a\", \"choices\": []}\n").unwrap();
        let path = plan.steps[at].directory.join("samples-math.jsonl");
        fs::write(path, format!("{line}\n")).unwrap();
    }
    let page = render(&plan).unwrap();
    for told in [
        "20.0 → 61.5 %",
        "75.0 %",
        "3.25",
        "1 &lt; 2?",
        "&lt;script&gt;",
        "9 from 0.50 to 1.00",
        ">7.0<",
    ] {
        assert!(page.contains(told), "{told}");
    }
    assert!(!page.contains("<script"), "nothing that a model says is part of the page");
    assert!(!page.contains("http://") && !page.contains("https://"));
}
