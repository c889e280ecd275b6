//! `halter reward`: a reward model from ranked completions.

use halter_rejection_sampling::Reward;
use halter_rejection_sampling::reward::config::RewardOptions;
use halter_rejection_sampling::reward::strength::Strength;

use crate::Context;
use crate::train::{self, MethodArgs};

/// Train a model that scores completions, from pairs or ranked lists of them
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    train: train::Args<RewardArgs>,
}

/// Its own flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RewardArgs {
    /// Weight of the term that draws scores towards a mean of zero
    #[arg(
        long,
        alias = "center_rewards_coefficient",
        value_name = "WEIGHT",
        help_heading = "Ranking"
    )]
    center_rewards_coefficient: Option<f64>,
    /// Drop rows whose strength is weaker: significantly, better, slightly or marginally
    #[arg(long, value_name = "STRENGTH", help_heading = "Ranking")]
    min_strength: Option<Strength>,
    /// Margin of a row that is significantly better (better 2/3 of it, slightly 1/3, marginally 0)
    #[arg(long, value_name = "MARGIN", help_heading = "Ranking")]
    strength_margin: Option<f64>,
    /// Leave out pairs of which at least this share of the tokens is the same
    #[arg(long, value_name = "SHARE", help_heading = "Ranking")]
    max_similarity: Option<f64>,
}

impl MethodArgs for RewardArgs {
    type Options = RewardOptions;

    fn apply(self, options: &mut RewardOptions) {
        macro_rules! set {
            ($($field:ident),*) => { $( if let Some(value) = self.$field { options.$field = value; } )* };
        }
        set!(center_rewards_coefficient, strength_margin, max_similarity);
        if self.min_strength.is_some() {
            options.min_strength = self.min_strength;
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    train::run::<RewardArgs, Reward>(args.train, context)
}
