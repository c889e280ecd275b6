//! A scorer as text: `[WEIGHT*]NAME[:ARGUMENT]`.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Scorer;
use super::options::Options;
use crate::code::{Code, Credit};
use crate::reward::scorer::RewardScorer;
use crate::sandbox::{Guarantee, Settings};
use crate::verifier::exact::Exact;
use crate::verifier::instructions::InstructionFollowing;
use crate::verifier::numeric::Numeric;
use crate::verifier::pattern::{Format, Pattern, Reach};
use crate::verifier::penalties::{LengthPenalty, RepetitionPenalty};
use crate::verifier::reference::Reference;
use crate::verifier::schema::JsonSchema;

/// The forms that a hint lists.
const FORMS: &str = "the scorers are `numeric`, `exact`, `regex:PATTERN`, `regex-full:PATTERN`, \
     `format:think`, `format:think-answer`, `ifeval`, `json-schema[:FILE]`, `code`, \
     `judge:FILE`, `reward:MODEL`, `length:TOKENS`, `repetition[:N]`; a weight goes in front, as in `0.5*length:1024`";

/// Words of an n-gram where `repetition` names no number.
const NGRAM: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Guarantees of the sandbox that `code` gives up where this machine cannot give them.
const GIVEN_UP: [(&str, Guarantee); 4] = [
    ("allow-network", Guarantee::NoNetwork),
    ("allow-writes", Guarantee::NoWritesOutside),
    ("allow-reads", Guarantee::NoReadsOutside),
    ("allow-processes", Guarantee::NoProcessesLeft),
];

/// A scorer as it is written on a command line: `[WEIGHT*]NAME[:ARGUMENT]`.
///
/// | text | scorer |
/// |---|---|
/// | `numeric[:column=NAME]` | [`Numeric`] |
/// | `exact[:column=NAME,ignore-case]` | [`Exact`] |
/// | `regex:PATTERN`, `regex-full:PATTERN` | [`Pattern`], found anywhere or matching all |
/// | `format:think`, `format:think-answer` | [`Format`] |
/// | `ifeval[:loose,all]` | [`InstructionFollowing`] |
/// | `json-schema[:FILE]`, `json-schema:column=NAME` | [`JsonSchema`] |
/// | `code[:share,seconds=N,allow-…]` | [`Code`] |
/// | `judge:FILE` | `Judge`, with the feature `judge` |
/// | `reward:MODEL` | [`RewardScorer`] |
/// | `length:TOKENS[,ramp=TOKENS]` | [`LengthPenalty`] |
/// | `repetition[:N]` | [`RepetitionPenalty`] |
///
/// ```
/// use halter_rejection_sampling::scorer::ScorerSpec;
/// let spec: ScorerSpec = "0.5*length:1024".parse()?;
/// assert_eq!(spec.weight(), 0.5);
/// assert_eq!(spec.to_string(), "0.5*length:1024");
/// # Ok::<(), halter_core::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScorerSpec {
    text: String,
    weight: f64,
    kind: Kind,
    /// See [`ScorerSpec::at`].
    now: Option<i64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Exact(Exact),
    Numeric(Numeric),
    Pattern(Pattern),
    Format(Format),
    Instructions(InstructionFollowing),
    SchemaFile(PathBuf),
    SchemaColumn(String),
    Code { settings: Settings, credit: Credit },
    JudgeFile(PathBuf),
    Reward(String),
    Length(LengthPenalty),
    Repetition(RepetitionPenalty),
}

impl ScorerSpec {
    /// What the score is multiplied with in a sum; 1 unless it was given.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The same scorer, where the chat template of a reward model is told the time `now`, in seconds
    /// since 1970, instead of the clock's.
    #[must_use]
    pub fn at(self, now: i64) -> Self {
        Self { now: Some(now), ..self }
    }

    /// Whether it gives −1 to 0, as `length` and `repetition`.
    pub fn is_penalty(&self) -> bool {
        matches!(self.kind, Kind::Length(_) | Kind::Repetition(_))
    }

    /// Whether it looks for a final answer in the completion.
    pub fn compares_answers(&self) -> bool {
        matches!(self.kind, Kind::Numeric(_))
    }

    /// Whether its scores have no fixed scale, as those of a reward model.
    pub fn is_learned(&self) -> bool {
        self.reward_model().is_some()
    }

    /// The reward model that it loads.
    pub fn reward_model(&self) -> Option<&str> {
        match &self.kind {
            Kind::Reward(model) => Some(model),
            _ => None,
        }
    }

    /// The file or directory that it reads, if it is on this machine.
    pub fn file(&self) -> Option<&Path> {
        let path = match &self.kind {
            Kind::SchemaFile(path) | Kind::JudgeFile(path) => path.as_path(),
            Kind::Reward(model) => Path::new(model),
            _ => return None,
        };
        path.exists().then_some(path)
    }

    /// The scorer, without its weight. Reads the file of `json-schema:FILE`, `judge:FILE` and `reward:MODEL`; tries
    /// out whether `code` can be contained here.
    pub fn build(&self) -> Result<Box<dyn Scorer>> {
        Ok(match &self.kind {
            Kind::Exact(scorer) => Box::new(scorer.clone()),
            Kind::Numeric(scorer) => Box::new(scorer.clone()),
            Kind::Pattern(scorer) => Box::new(scorer.clone()),
            Kind::Format(scorer) => Box::new(*scorer),
            Kind::Instructions(scorer) => Box::new(*scorer),
            Kind::SchemaFile(path) => Box::new(JsonSchema::from_file(path)?),
            Kind::SchemaColumn(column) => Box::new(JsonSchema::from_column(column)),
            Kind::Code { settings, credit } => Box::new(Code::new(settings.clone(), *credit)?),
            Kind::JudgeFile(path) => judge(path)?,
            Kind::Reward(model) => Box::new(RewardScorer::load(model, self.now)?),
            Kind::Length(scorer) => Box::new(*scorer),
            Kind::Repetition(scorer) => Box::new(*scorer),
        })
    }
}

#[cfg(feature = "judge")]
fn judge(path: &Path) -> Result<Box<dyn Scorer>> {
    use crate::verifier::judge::{Judge, JudgeConfig};
    let judge = Judge::new(JudgeConfig::from_file(path)?);
    Ok(Box::new(judge.map_err(|error| error.in_file(path))?))
}

/// Without the feature nobody can be asked.
#[cfg(not(feature = "judge"))]
fn judge(path: &Path) -> Result<Box<dyn Scorer>> {
    Err(Error::config(format!("scorer `judge:{}`: this build cannot ask a judge", path.display()))
        .hint("build with the feature `judge`"))
}

impl FromStr for ScorerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (weight, scorer) = match text.split_once('*') {
            Some((weight, rest)) if !weight.contains(':') => (read_weight(weight)?, rest),
            _ => (1.0, text),
        };
        let (name, argument) = match scorer.split_once(':') {
            Some((name, argument)) => (name.trim(), Some(argument)),
            None => (scorer.trim(), None),
        };
        let kind = Kind::read(name, argument)?;
        Ok(Self { text: text.to_string(), weight, kind, now: None })
    }
}

fn read_weight(text: &str) -> Result<f64> {
    let weight: Option<f64> = text.trim().parse().ok();
    weight.filter(|weight| weight.is_finite()).ok_or_else(|| {
        Error::config(format!("scorer weight: expected a finite number before `*`, got `{text}`"))
            .hint(FORMS)
    })
}

impl Kind {
    fn read(name: &str, argument: Option<&str>) -> Result<Self> {
        let argument = argument.filter(|argument| !argument.is_empty());
        let needed = |what: &str| {
            argument.ok_or_else(|| {
                Error::config(format!("scorer `{name}`: expected `{name}:{what}`, got no argument"))
            })
        };
        let mut options = Options::new(name, argument);
        match name {
            "numeric" => {
                let reference = Reference::new(options.text("column"));
                options.finish("`column=NAME`")?;
                Ok(Self::Numeric(Numeric { reference }))
            }
            "exact" => {
                let reference = Reference::new(options.text("column"));
                let ignore_case = options.flag("ignore-case");
                options.finish("`column=NAME` or `ignore-case`")?;
                Ok(Self::Exact(Exact { reference, ignore_case }))
            }
            "regex" => Ok(Self::Pattern(Pattern::new(needed("PATTERN")?, Reach::Anywhere)?)),
            "regex-full" => Ok(Self::Pattern(Pattern::new(needed("PATTERN")?, Reach::Whole)?)),
            "format" => Ok(Self::Format(argument.unwrap_or_default().parse()?)),
            "ifeval" => {
                let (loose, all) = (options.flag("loose"), options.flag("all"));
                options.finish("`loose` or `all`")?;
                Ok(Self::Instructions(InstructionFollowing { loose, all }))
            }
            "json-schema" => Ok(match argument.map(|text| (text, text.strip_prefix("column="))) {
                None => Self::SchemaColumn("schema".into()),
                Some((_, Some(column))) => Self::SchemaColumn(column.into()),
                Some((path, None)) => Self::SchemaFile(path.into()),
            }),
            "code" => Self::read_code(options),
            "judge" => Ok(Self::JudgeFile(needed("FILE")?.into())),
            "reward" => Ok(Self::Reward(needed("MODEL")?.into())),
            "length" => {
                needed("TOKENS")?;
                let limit = options.first().map(|text| options.read(text)).transpose()?;
                let ramp = options.number("ramp")?;
                options.finish("`TOKENS` or `ramp=TOKENS`")?;
                let limit: NonZeroUsize = limit.ok_or_else(|| {
                    Error::config(
                        "scorer `length`: expected `length:TOKENS`, got no number of tokens",
                    )
                })?;
                Ok(Self::Length(LengthPenalty { limit, ramp: ramp.unwrap_or(limit) }))
            }
            "repetition" => {
                let ngram = options.first().map(|text| options.read(text)).transpose()?;
                options.finish("`N`, the words of an n-gram")?;
                Ok(Self::Repetition(RepetitionPenalty { ngram: ngram.unwrap_or(NGRAM) }))
            }
            _ => Err(Error::config(format!("scorer: expected a name, got `{name}`")).hint(FORMS)),
        }
    }

    fn read_code(mut options: Options) -> Result<Self> {
        let mut settings = Settings::default();
        let credit = if options.flag("share") { Credit::Share } else { Credit::AllOrNothing };
        if let Some(seconds) = options.number::<NonZeroU32>("seconds")? {
            settings.limits.cpu_seconds = seconds.get().into();
            settings.limits.wall = Duration::from_secs(seconds.get().into());
        }
        for (flag, guarantee) in GIVEN_UP {
            if options.flag(flag) {
                settings.allow_weaker.push(guarantee);
            }
        }
        let flags = GIVEN_UP.map(|(flag, _)| format!("`{flag}`")).join(", ");
        options.finish(&format!("`share`, `seconds=N`, {flags}"))?;
        Ok(Self::Code { settings, credit })
    }
}

impl fmt::Display for ScorerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for ScorerSpec {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TryFrom<String> for ScorerSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ScorerSpec> for String {
    fn from(spec: ScorerSpec) -> Self {
        spec.text
    }
}
