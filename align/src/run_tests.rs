use std::collections::BTreeMap;

use halter_core::train::progress::{Recorded, Silent};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::cache::{Check, DONE};
use crate::inputs::{Checksums, files_of};
use crate::recipe::{Recipe, Stage};
use crate::{Commands, Prediction};

const RECIPE: &str = r#"
model = "MODEL"
rounds = 2
[eval]
task = ["owner/t"]
[[stage]]
name = "reward"
data = ["DATA", "{all.compare}/out"]
[[stage]]
name = "sample"
model = "{previous.dpo}"
scorer = ["reward:{reward}"]
[[stage]]
name = "sft"
model = "{base}"
data = ["{sample}/out"]
[[stage]]
name = "compare"
kind = "sample"
model = "{sft}"
[[stage]]
name = "dpo"
model = "{sft}"
data = ["{compare}/out"]
"#;

/// Commands that take everything.
struct Any;

impl Commands for Any {
    fn version(&self, _: &mut Checksums) -> Result<String> {
        Ok("1".into())
    }

    fn check(&self, _: &Stage, _: &Recipe) -> Result<()> {
        Ok(())
    }

    fn predict(&self, _: &Kind, _: &toml::Table, _: bool) -> Result<Option<Prediction>> {
        Ok(None)
    }
}

/// What a process does in the end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Done,
    /// Killed before it wrote anything.
    Early,
    /// Killed with half of it written.
    Half,
    /// Killed at its very end, before anybody wrote down that it was done.
    Late,
    /// Refused for a reason outside: a budget that is spent, a key that is not there.
    Refused,
    /// Done but for one of 20 rows.
    Lame,
}

/// Processes that write what they are made from, hashed.
struct Fake {
    root: PathBuf,
    ran: Vec<String>,
    resumed: usize,
    /// Which of them ends how; all others well.
    fate: Option<(usize, Fate)>,
}

impl Fake {
    /// What a job's options and all that they refer to say.
    fn made(&self, job: &Job) -> String {
        let mut text = String::new();
        let mut words: Vec<String> = job.arguments.clone();
        if let Some(at) = words.iter().position(|word| word == "--config") {
            let config = fs::read_to_string(&words[at + 1]).unwrap();
            words[at + 1] = config;
        }
        let output = words.iter().position(|word| word == "--output").unwrap();
        words.drain(output..);
        for word in words {
            let mut pieces = word.split(['"', '=', ':', '\n']).collect::<Vec<_>>();
            pieces.retain(|piece| !piece.trim().is_empty());
            for piece in pieces {
                let path = Path::new(piece);
                let path = if path.is_dir() { path.join("out") } else { path.to_path_buf() };
                match fs::read_to_string(&path) {
                    Ok(found) => text += &found,
                    Err(_) => text += &piece.replace(self.root.to_str().unwrap(), ""),
                }
                text.push('\n');
            }
        }
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

impl Runner for Fake {
    fn run(&mut self, job: &Job, _: &Interrupt) -> Result<Ended> {
        let name = job.output.file_name().unwrap().to_string_lossy().into_owned();
        self.ran.push(name);
        let fate = match self.fate {
            Some((at, fate)) if at + 1 == self.ran.len() => fate,
            _ => Fate::Done,
        };
        let out = job.output.join("out");
        let is_resumed = job.arguments.contains(&"--resume".to_string());
        self.resumed += usize::from(is_resumed);
        let made = self.made(job);
        if job.arguments[0] == "synth" {
            self.resumed += usize::from(out.exists());
        } else if !is_resumed {
            assert!(!out.exists(), "{} is not empty", job.output.display());
        }
        if fate == Fate::Refused {
            fs::write(&job.stdout, "{\"error\": {\"message\": \"the budget is spent\"}}\n")
                .unwrap();
            return Ok(Ended { code: Some(2), peak_memory: None });
        }
        fs::create_dir_all(&job.output).unwrap();
        let is_training = job.arguments.contains(&"--config".to_string());
        let settings = if is_training { "config.toml" } else { "out.settings.json" };
        // Results begin later than runs.
        if fate != Fate::Early || is_training {
            fs::write(job.output.join(settings), "").unwrap();
        }
        if fate != Fate::Early {
            let half = &made[..if fate == Fate::Half { 10 } else { made.len() }];
            fs::write(&out, half).unwrap();
        }
        let mut said = String::from(
            "noise\n{\"tasks\": [{\"task\": \"t\", \"acc\": 0.5, \"rows\": 10, \"unscored\": 1}], \
             \"settings\": {\"num_completions\": 2}}\n",
        );
        if fate == Fate::Lame {
            said += "{\"error\": {\"message\": \"1 completion could not be judged\"}}\n";
        }
        fs::write(&job.stdout, said).unwrap();
        let code = match fate {
            Fate::Done => Some(0),
            Fate::Lame => Some(1),
            _ => None,
        };
        Ok(Ended { code, peak_memory: Some(1 << 20) })
    }
}

/// A recipe in a folder of its own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.dir.path().join("base")).unwrap();
        fs::write(place.dir.path().join("base/out"), "weights").unwrap();
        fs::write(place.data(), "rows").unwrap();
        place
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data.jsonl")
    }

    fn plan_of(&self, text: &str) -> Plan {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let text = text.replace("MODEL", &path("base")).replace("DATA", &path("data.jsonl"));
        let mut recipe = Recipe::parse(&text, Path::new("r.toml")).unwrap();
        recipe.output = self.dir.path().join("run");
        Plan::new(recipe, &Any, Check::Quick).unwrap()
    }

    fn fake(&self, fate: Option<(usize, Fate)>) -> Fake {
        Fake { root: self.dir.path().to_path_buf(), ran: Vec::new(), resumed: 0, fate }
    }

    fn run(&self, fate: Option<(usize, Fate)>) -> (Result<Outcome>, Fake) {
        let mut fake = self.fake(fate);
        let mut plan = self.plan_of(RECIPE);
        let outcome = run(&mut plan, &mut fake, &mut Silent, &Interrupt::new());
        (outcome, fake)
    }

    /// The outputs of all stages.
    fn outputs(&self) -> BTreeMap<PathBuf, String> {
        let stages = self.dir.path().join("run/stages");
        let read = |path: PathBuf| (path.clone(), fs::read_to_string(stages.join(path)).unwrap());
        let is_output = |path: &PathBuf| path.ends_with("out");
        files_of(&stages).unwrap().into_iter().filter(is_output).map(read).collect()
    }
}

#[test]
fn a_second_run_does_nothing() {
    let place = Place::new();
    let (outcome, first) = place.run(None);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.ran, outcome.cached), (19, 0), "{:?}", first.ran);
    assert!(outcome.model.unwrap().join("out").exists());
    let before = place.outputs();
    let (outcome, second) = place.run(None);
    let outcome = outcome.unwrap();
    assert!(second.ran.is_empty(), "{:?}", second.ran);
    assert_eq!((outcome.ran, outcome.cached), (0, 19));
    assert_eq!(outcome.stages.iter().filter(|stage| !stage.accuracy.is_empty()).count(), 19);
    assert_eq!(place.outputs(), before);
}

#[test]
fn killed_anywhere_it_comes_to_the_same() {
    let whole = Place::new();
    whole.run(None).0.unwrap();
    let stages = whole.outputs().len();
    let mut resumed = 0;
    for at in 0..stages {
        for fate in [Fate::Early, Fate::Half, Fate::Late] {
            let place = Place::new();
            let (outcome, first) = place.run(Some((at, fate)));
            let error = outcome.unwrap_err();
            assert!(error.message().ends_with(" failed"), "{error}");
            assert_eq!(first.ran.len(), at + 1);
            let (outcome, second) = place.run(None);
            outcome.unwrap();
            resumed += second.resumed;
            // Keys hold paths of inputs outside, which differ from one folder to the next.
            let contents = |outputs: BTreeMap<PathBuf, String>| {
                let mut found: Vec<_> = outputs
                    .into_iter()
                    .map(|(path, text)| {
                        let name = path.to_string_lossy().into_owned();
                        (name.rsplit_once('-').unwrap().0.to_string(), text)
                    })
                    .collect();
                found.sort();
                found
            };
            assert_eq!(contents(place.outputs()), contents(whole.outputs()), "{at} {fate:?}");
            assert_eq!(second.ran.len(), stages - at, "{at} {fate:?}");
        }
    }
    assert!(resumed > stages, "{resumed}");
}

#[test]
fn what_goes_on_by_itself_keeps_what_it_has() {
    let place = Place::new();
    let recipe = "model = 'MODEL'\n[[stage]]\nname = 'synth'\npipeline = 'DATA'\n";
    let run_it = |fate| {
        let mut fake = place.fake(fate);
        let outcome = run(&mut place.plan_of(recipe), &mut fake, &mut Silent, &Interrupt::new());
        (outcome.is_ok(), fake.resumed)
    };
    assert_eq!(run_it(Some((0, Fate::Half))), (false, 0));
    assert_eq!(run_it(None), (true, 1));
}

#[test]
fn a_stage_that_is_refused_keeps_what_it_has() {
    let one = |name: &str, more: &str| {
        format!("model = 'MODEL'\n[[stage]]\nname = '{name}'\n{more} = 'DATA'\n")
    };
    for recipe in [one("synth", "pipeline"), one("sample", "data"), one("sft", "data")] {
        let place = Place::new();
        let run_it = |fate| {
            let mut fake = place.fake(Some((0, fate)));
            let mut plan = place.plan_of(&recipe);
            let outcome = run(&mut plan, &mut fake, &mut Silent, &Interrupt::new());
            (outcome.map_err(|error| format!("{error:?}")), fake.resumed)
        };
        assert!(run_it(Fate::Half).0.is_err());
        let half = place.outputs();
        assert_eq!(half.len(), 1);
        let (refused, _) = run_it(Fate::Refused);
        assert!(refused.unwrap_err().contains("the budget is spent"));
        assert_eq!(place.outputs(), half, "{recipe}");
        let (done, resumed) = run_it(Fate::Done);
        assert!(done.is_ok() && resumed == 1, "{recipe}");
    }
}

#[test]
fn a_share_of_the_rows_may_fail_where_the_recipe_says_so() {
    let place = Place::new();
    for (failures, is_accepted) in
        [("", false), ("failures = 0.04", false), ("failures = 0.05", true)]
    {
        let recipe = format!("model = 'MODEL'\n{failures}\n[[stage]]\nname = 'eval'\n");
        let mut plan = place.plan_of(&recipe);
        let mut told = Recorded::default();
        let mut fake = place.fake(Some((0, Fate::Lame)));
        let outcome = run(&mut plan, &mut fake, &mut told, &Interrupt::new());
        assert_eq!(outcome.is_ok(), is_accepted, "{failures}: {outcome:?}");
        let note = "1 of 20 failed; up to that share are accepted";
        assert_eq!(told.notes.iter().any(|told| told == note), is_accepted, "{told:?}");
        if let Err(error) = outcome {
            assert!(format!("{error:?}").contains("could not be judged"), "{error:?}");
        }
    }
    let page = fs::read_to_string(place.dir.path().join("run/report.html")).unwrap();
    assert!(page.contains("1 of 20 failed"), "{page}");
}

#[test]
fn what_a_command_tells_of_failures_is_the_worst_of_its_figures() {
    let told = [
        ("generate", json!({ "failed_rows": 2, "rows": 8 }), (2, 8)),
        ("distill capture", json!({ "failed": 1, "rows": 3 }), (1, 4)),
        (
            "synth",
            json!({ "steps": [
                { "figures": { "questions": 40, "unanswered": 4 } },
                { "figures": { "questions": 5, "unanswered": 1 } },
                { "figures": {} },
            ] }),
            (1, 5),
        ),
    ];
    for (name, summary, (failed, of)) in told {
        let kind = crate::kind::named(name).unwrap();
        assert_eq!(Failed::of(kind, &summary), Some(Failed { failed, of }), "{name}");
        assert_eq!(Failed::of(kind, &json!({})), None, "{name}");
    }
}

#[test]
fn the_recipe_that_is_kept_has_what_was_set_since() {
    let text = "# mine\nmodel = \"a\"\nrounds = 2\n[[stage]]\nname = \"sft\"\nrounds = \"2-\"\n\
                [[stage]]\nname = \"dpo\"\nrounds = 1\n";
    let mut recipe = Recipe::parse(text, Path::new("r.toml")).unwrap();
    assert_eq!(recipe.resolved(), text);
    (recipe.model, recipe.seed) = ("b".into(), 3);
    recipe.set_rounds(4);
    let again = Recipe::parse(&recipe.resolved(), Path::new("r.toml")).unwrap();
    assert_eq!((&again.model[..], again.seed, again.rounds), ("b", 3, 4));
    assert_eq!(again.stages[0].rounds, (2, 4));
    assert_eq!(again.stages[1].rounds, (1, 1));
    assert!(recipe.resolved().contains("# mine\n"));
}

#[test]
fn what_is_upstream_of_a_change_stays() {
    let place = Place::new();
    place.run(None).0.unwrap();
    let text = RECIPE.replace("name = \"compare\"", "name = \"compare\"\nmin_margin = 2");
    let mut plan = place.plan_of(&text);
    let left: Vec<String> = plan
        .graph
        .nodes
        .iter()
        .zip(&plan.steps)
        .filter(|(_, step)| !matches!(step.status, Status::Done(_)))
        .map(|(node, _)| format!("{}@{}", node.name, node.round))
        .collect();
    assert_eq!(
        left[..5],
        ["compare@1", "dpo@1", "eval-dpo@1", "drift-dpo@1", "reward@2"].map(String::from)
    );
    let mut fake = place.fake(None);
    run(&mut plan, &mut fake, &mut Silent, &Interrupt::new()).unwrap();
    assert_eq!(fake.ran.len(), left.len());
    // Other data runs all of it again that is made from it.
    fs::write(place.data(), "other rows").unwrap();
    let (_, fake) = place.run(None);
    assert_eq!(fake.ran.len(), 18, "all but the base's evaluation: {:?}", fake.ran);
}

#[test]
fn a_damaged_output_is_noticed_and_made_again() {
    let place = Place::new();
    place.run(None).0.unwrap();
    let before = place.outputs();
    let stages = place.dir.path().join("run/stages");
    let victim = before
        .keys()
        .find(|path| path.starts_with("dpo") || path.to_string_lossy().starts_with("dpo-"))
        .unwrap();
    for damaged in [victim.clone(), victim.with_file_name(DONE)] {
        fs::write(stages.join(&damaged), "{").unwrap();
        let mut plan = place.plan_of(RECIPE);
        let mut told = Recorded::default();
        let mut fake = place.fake(None);
        run(&mut plan, &mut fake, &mut told, &Interrupt::new()).unwrap();
        assert_eq!(fake.ran.len(), 1, "{:?}", fake.ran);
        assert!(told.notes.iter().any(|note| note.ends_with("it is run again")), "{told:?}");
        assert_eq!(place.outputs(), before);
    }
}

#[test]
fn an_interruption_is_one() {
    let place = Place::new();
    let mut plan = place.plan_of(RECIPE);
    let interrupt = Interrupt::new();
    interrupt.set();
    let error = run(&mut plan, &mut place.fake(None), &mut Silent, &interrupt).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(error.message().starts_with("interrupted in eval-base"), "{error}");
}

#[test]
fn what_is_missing_is_named_before_anything_runs() {
    let place = Place::new();
    fs::remove_file(place.data()).unwrap();
    let mut plan = place.plan_of(RECIPE);
    assert!(plan.table().contains("missing: "), "{}", plan.table());
    let mut fake = place.fake(None);
    let error = run(&mut plan, &mut fake, &mut Silent, &Interrupt::new()).unwrap_err();
    assert_eq!(error.location().unwrap().line, Some(8));
    assert!(error.message().ends_with("data.jsonl` is not there"), "{error}");
    assert!(fake.ran.is_empty());
}

#[test]
fn options_become_flags() {
    let options: toml::Table =
        "a_b = \"x y\"\nlist = [1, 2.5]\nyes = true\nno = false\nneg = -1\npipeline = \"p.toml\""
            .parse()
            .unwrap();
    let kind = crate::kind::named("synth").unwrap();
    let mut flags = flags(kind, &options);
    flags.sort();
    assert_eq!(flags, ["--a-b=x y", "--list=1", "--list=2.5", "--neg=-1", "--yes", "p.toml"]);
}
