use std::collections::BTreeMap;

use halter_core::train::progress::{Recorded, Silent};
use tempfile::TempDir;

use super::*;
use crate::cache::{Check, DONE};
use crate::inputs::files_of;
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
    fn version(&self) -> String {
        "1".into()
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
        } else if !out.exists() {
            return Ok(Ended { code: Some(REFUSED), peak_memory: None });
        }
        if fate != Fate::Early {
            fs::create_dir_all(&job.output).unwrap();
            let half = &made[..if fate == Fate::Half { 10 } else { made.len() }];
            fs::write(&out, half).unwrap();
        } else {
            fs::create_dir_all(&job.output).unwrap();
            fs::write(job.output.join("config.toml"), "").unwrap();
        }
        fs::write(&job.stdout, "noise\n{\"tasks\": [{\"task\": \"t\", \"acc\": 0.5}]}\n").unwrap();
        let code = if fate == Fate::Done { Some(0) } else { None };
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
            // One that found nothing to go on from was begun twice.
            let twice = usize::from(second.ran.get(1) == second.ran.first());
            assert_eq!(second.ran.len(), stages - at + twice, "{at} {fate:?}");
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
