//! K completions of every prompt, scored, and the best of them kept ("The Llama 3 Herd of Models",
//! section 4.2.2).
//!
//! All completions go to one file with their scores, a line for each prompt, in order: it is what a
//! run resumes from. What is kept of them follows from that file alone.

mod again;
mod figures;
mod keep;
mod line;
mod report;
mod run;
#[cfg(test)]
mod tests;

pub use figures::{Figures, Rate};
pub use keep::{Keep, Kept, Selection, write_kept};
pub use line::{Line, Scored, read_lines};
pub use report::render;
pub use run::{Outcome, Sampler, Variant};
