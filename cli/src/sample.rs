//! `halter sample`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use halter_core::data::dataset::DataOptions;
use halter_core::data::format::{Columns, Format};
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::text::strftime::Moment;
use halter_core::train::files::{atomic_write, remove_temporaries};
use halter_core::train::progress::{Progress, counted};
use halter_core::{Error, bundled};
use halter_rejection_sampling::sample::{
    Figures, Keep, Kept, Outcome, Sampler, Selection, Variant, render, write_kept,
};
use halter_rejection_sampling::scorer::{ScorerSpec, WeightedSum};
use serde_json::{Map, Value, json};

use crate::answering::{Load, MAX_NEW_TOKENS, ModelArgs, SamplingArgs, resumable};
use crate::{Context, interrupt, progress};

/// Least score of a verifier: what is right has 1, what is wrong 0.
const RIGHT: f64 = 0.5;

/// Complete prompts many times, score the completions, keep the best
///
/// Writes all completions with their scores (completions.jsonl), rows for fine-tuning (sft.jsonl),
/// preference pairs (preferences.jsonl), and a report. With no --model and no --data, the bundled
/// model answers bundled problems, and their answers are checked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data set: file, directory or hub id; repeatable
    #[arg(long, alias = "dataset_name", value_name = "DATA")]
    data: Vec<String>,
    /// Format of the rows, where it is not to be detected
    #[arg(long)]
    format: Option<String>,
    /// Column under another name, as prompt=question; repeatable
    #[arg(long, value_name = "WANTED=OWN")]
    column: Vec<String>,
    /// Directory of the results
    #[arg(long, value_name = "DIR", default_value = "runs/sample")]
    output: PathBuf,
    /// Go on after the last row in --output
    #[arg(long)]
    resume: bool,
    /// Completions of each prompt
    #[arg(long, alias = "num_completions", value_name = "K", default_value_t = 10,
          value_parser = clap::value_parser!(u16).range(1..))]
    num_completions: u16,
    /// Scorer, as [WEIGHT*]NAME[:ARGUMENT]; repeatable, scores add up (docs/reference/scorers.md)
    #[arg(long, value_name = "SCORER", help_heading = "Selection")]
    scorer: Vec<String>,
    /// Rows for fine-tuning: best, above=SCORE, top=FRACTION, majority or none
    #[arg(long, default_value = "best", help_heading = "Selection")]
    select: String,
    /// Least score of what is kept, and of what counts as accepted (default: that of above=SCORE, else
    /// half of what a verifier gives; none with a reward model)
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, help_heading = "Selection")]
    min_score: Option<f64>,
    /// Least difference of the scores of a preference pair
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, help_heading = "Selection")]
    min_margin: f64,
    /// Write no preference pairs
    #[arg(long, help_heading = "Selection")]
    no_pairs: bool,
    /// Temperatures that completions are drawn with in turn, between commas
    #[arg(
        long,
        value_name = "T,T",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    temperatures: Vec<f32>,
    /// System prompt for some of the completions, in turn; "" is none; it does not become part of the
    /// rows; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    system: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the subcommand.
pub fn run(mut args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    if args.data.is_empty() && args.model.model.is_none() {
        progress.note("no --model and no --data: the bundled tiny model and problems");
        args.data = vec![bundled::PROBLEMS.into()];
        if args.scorer.is_empty() {
            args.scorer = vec!["numeric".into()];
        }
    }
    let specs = args.specs()?;
    let mut keep = check(&args, &specs)?;
    let completions = args.output.join("completions.jsonl");
    let before = args.resume.then(|| ResultFile::settings(&completions)).transpose()?;
    let began_at = before.as_ref().and_then(|settings| settings.get("began_at")?.as_i64());
    let began_at = began_at.unwrap_or_else(|| Moment::now().0);
    let specs: Vec<_> = specs.into_iter().map(|spec| spec.at(began_at)).collect();
    let scorer = WeightedSum::from_specs(&specs)?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io("create", &args.output, e))?;
    remove_temporaries(&args.output)?;
    if !args.resume {
        ResultFile::refuse_occupied(&completions)?;
    }
    let rows = args.rows()?;
    rows.sets().iter().for_each(|set| progress.note(&format!("data: {set}")));
    let generator = args.model.open(Some(began_at))?;
    progress.note(&format!("model: {}", generator.name));
    progress.note(&format!("scorer: {}", args.scorer.join(" + ")));
    let variants = variants(&args)?;
    let stop_tokens = args.sampling.stop_tokens(&generator)?;
    let engine = args.model.engine(&generator, before.as_ref());
    let mut settings = settings(&args, &rows, &generator, &variants, &stop_tokens, began_at)?;
    settings.insert("cache_tokens".into(), engine.cache_tokens.into());
    let fingerprints = scorer.fingerprints()?;
    if fingerprints.iter().any(Option::is_some) {
        settings.insert("scorer_fingerprints".into(), json!(fingerprints));
    }
    let sampler = Sampler {
        generator: &generator,
        rows: &rows,
        scorer: &scorer,
        variants: &variants,
        max_new_tokens: args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        stop_tokens: &stop_tokens,
        stop: &args.sampling.stop,
        seed: args.sampling.seed,
        engine,
    };
    let interrupt = interrupt::on_ctrl_c()?;
    let mut file = match args.resume {
        true => {
            // it ends with a whole line then
            ResultFile::resume(&completions, &settings)?;
            let again = sampler.score_again(&completions, progress.as_mut(), &interrupt);
            again.map_err(resumable)?;
            ResultFile::resume(&completions, &settings)?
        }
        false => ResultFile::create(&completions, &settings)?,
    };
    let first = file.rows();
    if first > 0 {
        let total = counted(rows.len() as usize, "row");
        progress.note(&format!("resumed after {first} of {total}"));
    }
    let outcome = sampler.run(first, &mut file, progress.as_mut(), &interrupt);
    let outcome = outcome.map_err(resumable)?;
    file.finish().map_err(resumable)?;
    keep.provenance.extend([
        ("model".to_string(), json!(generator.name)),
        ("model_fingerprint".to_string(), settings["model_fingerprint"].clone()),
        ("seed".to_string(), json!(args.sampling.seed)),
        ("scorer".to_string(), json!(args.scorer.join(" + "))),
    ]);
    if let Some(fingerprints) = settings.get("scorer_fingerprints") {
        keep.provenance.insert("scorer_fingerprints".into(), fingerprints.clone());
    }
    finish(&args, &keep, &outcome, &completions, progress.as_mut(), context)
}

impl Args {
    /// The model, and what it will have to do.
    pub fn load(&self) -> anyhow::Result<(&ModelArgs, Load)> {
        let each = usize::from(self.num_completions);
        let most = self.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
        Ok((&self.model, Load::of_rows(&self.rows()?, each, most)?))
    }

    /// The reward models among the scorers.
    pub fn reward_models(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.specs()?.iter().filter_map(|spec| Some(spec.reward_model()?.into())).collect())
    }

    fn specs(&self) -> halter_core::Result<Vec<ScorerSpec>> {
        self.scorer.iter().map(|spec| spec.parse()).collect()
    }

    fn rows(&self) -> anyhow::Result<Rows> {
        let format = self.format.as_deref().map(Format::from_str).transpose()?;
        let options = DataOptions { format, columns: Columns::parse(&self.column)? };
        Ok(Rows::open(&self.data, &options)?)
    }
}

/// Refuses what can be refused before anything is opened.
fn check(args: &Args, specs: &[ScorerSpec]) -> anyhow::Result<Keep> {
    if args.data.is_empty() {
        return Err(Error::config("no data: expected at least one `--data`").into());
    }
    let selection: Selection = args.select.parse()?;
    if specs.is_empty() && selection != Selection::Majority {
        return Err(Error::config("no scorer: expected at least one `--scorer`")
            .hint(
                "`--scorer numeric` compares with the row's answer; `--select majority` needs none",
            )
            .into());
    }
    let numbers = [("min-score", args.min_score), ("min-margin", Some(args.min_margin))];
    if let Some((name, _)) = numbers.iter().find(|(_, x)| x.is_some_and(f64::is_nan)) {
        return Err(Error::config(format!("`{name}` is not a number")).into());
    }
    let least = match (args.min_score, selection) {
        (Some(score), _) | (None, Selection::Above(score)) => Some(score),
        (None, _) => least_score(specs)?,
    };
    let pairs = !args.no_pairs && !specs.is_empty();
    Ok(Keep {
        selection,
        min_score: least,
        min_margin: pairs.then_some(args.min_margin),
        provenance: Map::new(),
    })
}

/// The score that parts right from wrong: half of what one verifier gives, beside which penalties are
/// small. There is none where a reward model scores.
fn least_score(specs: &[ScorerSpec]) -> anyhow::Result<Option<f64>> {
    if specs.is_empty() || specs.iter().any(ScorerSpec::is_learned) {
        return Ok(None);
    }
    let (penalties, verifiers): (Vec<&ScorerSpec>, _) = specs.iter().partition(|s| s.is_penalty());
    let penalty: f64 = penalties.iter().map(|spec| spec.weight().abs()).sum();
    match verifiers[..] {
        [verifier] if penalty < RIGHT * verifier.weight() => Ok(Some(RIGHT * verifier.weight())),
        _ => {
            let names: Vec<String> = specs.iter().map(ToString::to_string).collect();
            let message = format!("`{}`: which score is good enough?", names.join(" + "));
            Err(Error::config(message)
                .hint("give `--min-score`: it has a default for one verifier, with small penalties")
                .into())
        }
    }
}

/// The ways to draw completions: temperatures and system prompts in turn.
fn variants(args: &Args) -> anyhow::Result<Vec<Variant>> {
    let plain = args.sampling.sampling(1.0)?;
    let temperatures = match args.temperatures.is_empty() {
        true => vec![plain.temperature],
        false => args.temperatures.clone(),
    };
    let systems: Vec<Option<String>> = match args.system.is_empty() {
        true => vec![None],
        false => {
            args.system.iter().map(|text| Some(text.clone()).filter(|s| !s.is_empty())).collect()
        }
    };
    let mut variants = Vec::new();
    for system in systems {
        for &temperature in &temperatures {
            let sampling = halter_core::generate::sampling::Sampling { temperature, ..plain };
            sampling.validate()?;
            variants.push(Variant { sampling, system: system.clone(), completions: 0 });
        }
    }
    let ways = variants.len();
    if ways > args.num_completions.into() {
        return Err(Error::config(format!(
            "`{ways}` ways to draw and `{}` completions: expected at least one of each",
            args.num_completions
        ))
        .hint("raise `--num-completions`")
        .into());
    }
    for at in 0..usize::from(args.num_completions) {
        variants[at % ways].completions += 1;
    }
    Ok(variants)
}

/// Everything that completions and scores depend on.
fn settings(
    args: &Args,
    rows: &Rows,
    generator: &Generator,
    variants: &[Variant],
    stop_tokens: &[u32],
    began_at: i64,
) -> anyhow::Result<Map<String, Value>> {
    let mut data = Map::new();
    for set in rows.sets() {
        data.insert(set.name().into(), set.fingerprint()?.into());
    }
    let ways: Vec<Value> = variants
        .iter()
        .map(|way| {
            let sampling = way.sampling;
            json!({
                "temperature": sampling.temperature, "top_k": sampling.top_k,
                "top_p": sampling.top_p, "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "system": way.system, "completions": way.completions,
            })
        })
        .collect();
    let settings = json!({
        "model": generator.name,
        "adapter": args.model.adapter(),
        "model_fingerprint": generator.fingerprint()?,
        "data": data,
        "format": args.format,
        "column": args.column,
        "scorer": args.scorer,
        "ways": ways,
        "max_new_tokens": args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        "stop": args.sampling.stop,
        "stop_tokens": stop_tokens,
        "seed": args.sampling.seed,
        "allow_special_text": generator.allow_special_text,
        "began_at": began_at,
    });
    // By way of the text, numbers are what they will be when the file is read.
    Ok(serde_json::from_str(&settings.to_string())?)
}

/// Writes what is kept and the report, and says what came of it.
fn finish(
    args: &Args,
    keep: &Keep,
    outcome: &Outcome,
    completions: &Path,
    progress: &mut dyn Progress,
    context: &Context,
) -> anyhow::Result<()> {
    let place = |name: &str| args.output.join(name);
    let kept = write_kept(keep, completions, &place("sft.jsonl"), &place("preferences.jsonl"));
    let kept = kept.map_err(resumable)?;
    let votes = args.specs()?.iter().any(ScorerSpec::compares_answers);
    let figures = Figures::read(completions, keep.min_score, votes)?;
    let facts = facts(keep, outcome, kept);
    let page = render("Rejection sampling", &facts, &figures)?;
    atomic_write(place("report.html"), page.as_bytes()).map_err(resumable)?;
    let summary = json!({
        "output": args.output, "kept_rows": kept.rows, "pairs": kept.pairs,
        "tokens": outcome.tokens, "seconds": outcome.seconds,
        "seconds_outside_the_model": outcome.seconds_outside,
        "scoring_seconds": outcome.scoring_seconds, "figures": figures,
    });
    let written = atomic_write(place("summary.json"), format!("{summary:#}\n").as_bytes());
    written.map_err(resumable)?;
    for (name, value) in facts {
        progress.note(&format!("{name}: {value}"));
    }
    if let Some((mean, error)) = figures.acceptance {
        progress.note(&format!("accepted: {:.1} % ± {:.1}", 100.0 * mean, 100.0 * error));
    }
    if let Some(rate) = figures.pass_at.last() {
        progress.note(&format!("pass@{}: {:.1} %", rate.k, 100.0 * rate.mean));
    }
    if figures.partial_prompts > 0 {
        let prompts = counted(figures.partial_prompts, "prompt");
        progress.note(&format!(
            "{prompts} completed in some ways only: completions.jsonl has the reasons"
        ));
    }
    progress.note(&format!("report: {}", place("report.html").display()));
    context.print_json(&summary)?;
    match (figures.failed_prompts, figures.unscored) {
        (0, 0) => Ok(()),
        (prompts, unscored) => Err(Error::data(format!(
            "{} could not be completed, {} not be scored",
            counted(prompts, "prompt"),
            counted(unscored, "completion")
        ))
        .hint("completions.jsonl has the reasons; all others are kept")
        .into()),
    }
}

fn facts(keep: &Keep, outcome: &Outcome, kept: Kept) -> Vec<(String, String)> {
    let least = keep.min_score.map_or("none".to_string(), |score| score.to_string());
    let model = 100.0 * (1.0 - outcome.seconds_outside / outcome.seconds.max(1e-9));
    let rate = outcome.tokens as f64 / outcome.seconds.max(1e-9);
    let mut facts = vec![
        ("selection".to_string(), format!("{}, least score {least}", keep.selection)),
        ("kept".into(), format!("{}, {}", counted(kept.rows, "row"), counted(kept.pairs, "pair"))),
    ];
    for name in ["model", "model_fingerprint", "scorer", "seed"] {
        if let Some(value) = keep.provenance.get(name) {
            let told = value.as_str().map_or(value.to_string(), str::to_string);
            facts.push((name.replace('_', " "), told));
        }
    }
    if outcome.tokens > 0 {
        let told = format!(
            "{} tokens in {:.1} s ({rate:.0} tokens/s), {model:.1} % of it in the model",
            outcome.tokens, outcome.seconds
        );
        facts.push(("work".into(), told));
    }
    facts
}
