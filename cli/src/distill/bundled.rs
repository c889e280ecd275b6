//! Teacher and student of `halter distill` without arguments.

use std::path::Path;

use halter_core::bundled;
use halter_core::model::weights::export::ExportOptions;
use halter_core::train::progress::Progress;
use halter_core::train::run::{self, Prepared};
use halter_core::train::run_dir::{RunFiles, Start};
use halter_distill::config::DistillConfig;
use halter_distill::init::{Blocks, keep_blocks};
use halter_sft::Sft;
use halter_sft::config::SftConfig;

use crate::{export, interrupt};

/// Blocks of the bundled model that the student has.
const STUDENT_BLOCKS: usize = 4;

/// Makes the teacher and the student that the bundled recipe names, where they are not there.
pub fn prepare(config: &DistillConfig, progress: &mut dyn Progress) -> anyhow::Result<()> {
    if let Some(student) = config.train.model.as_deref().map(Path::new)
        && !student.exists()
    {
        let blocks = Blocks::Spread(STUDENT_BLOCKS);
        let model = export::open(bundled::MODEL, None)?;
        progress.note(&format!(
            "student: {STUDENT_BLOCKS} of the bundled model's {} blocks, in {}",
            model.config.num_hidden_layers,
            student.display()
        ));
        keep_blocks(&model, &blocks, None, &ExportOptions::default(), student)?;
    }
    let bundled = DistillConfig::bundled()?.method.teacher;
    match &config.method.teacher {
        // Its card is the last thing that a run writes.
        Some(teacher) if bundled.as_ref() == Some(teacher) => {
            match RunFiles::new(teacher).card().exists() {
                true => Ok(()),
                false => trained(Path::new(teacher), progress),
            }
        }
        _ => Ok(()),
    }
}

/// The bundled model after supervised fine-tuning.
fn trained(teacher: &Path, progress: &mut dyn Progress) -> anyhow::Result<()> {
    progress
        .note(&format!("teacher: the bundled model, fine-tuned first in {}", teacher.display()));
    let mut config = SftConfig::bundled()?;
    config.train.output = teacher.to_path_buf();
    config.train.eval_generate = 0;
    config.train.max_new_tokens = SftConfig::default().train.max_new_tokens;
    let start = if teacher.exists() { Start::Resume } else { Start::Fresh };
    let prepared = Prepared::<Sft>::new(&config, start, progress)?;
    run::run(prepared, progress, &interrupt::on_ctrl_c()?)?;
    Ok(())
}
