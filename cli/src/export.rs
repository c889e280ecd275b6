//! What the commands that make a model of others share: what they open, where they write to.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use halter_core::model::weights::export::ExportOptions;
use halter_core::model::weights::{HubOptions, ModelFiles};
use halter_core::{Error, Result, bundled};

/// The export.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Where to write the export: a directory that is not there, or is empty
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    pub output: PathBuf,

    /// Type of the exported weights
    #[arg(long, value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "bf16", "f16"]))]
    pub export_dtype: String,
}

impl Export {
    /// How it is written.
    pub fn options(&self) -> Result<ExportOptions> {
        let dtype = self
            .export_dtype
            .parse()
            .map_err(|error| Error::config("the type of the export is not known").because(error))?;
        Ok(ExportOptions { dtype, ..ExportOptions::default() })
    }
}

/// Opens what a user calls a model: a directory, a `.gguf` file, a hub id with the revision, or
/// `bundled`.
pub fn open(model: &str, revision: Option<&str>) -> Result<ModelFiles> {
    let hub = HubOptions { revision: revision.map(str::to_string), ..HubOptions::default() };
    let bundled = bundled::path(model)?.map(|path| path.display().to_string());
    ModelFiles::open(bundled.as_deref().unwrap_or(model), &hub)
}
