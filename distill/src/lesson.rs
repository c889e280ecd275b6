//! What a step is taught on: rows, of which some have a completion that was written for the step, by
//! the student (on-policy: GKD, Agarwal et al. 2024, algorithm 1) or by the teacher (sequence-level
//! distillation: Kim & Rush 2016).

use halter_core::Result;
use halter_core::data::record::Row;
use halter_core::generate::engine::Request;
use halter_core::generate::sampling::{Sampling, draw};
use halter_core::generate::{Tokens, complete};
use halter_core::model::Decoder;

/// How completions are written.
#[derive(Debug, Clone, PartialEq)]
pub struct Writing {
    /// Share of the rows that are the student's.
    pub on_policy_fraction: f64,
    /// Whether the others are the teacher's.
    pub teacher_completions: bool,
    /// 0: the likeliest token, always.
    pub temperature: f64,
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Most tokens of a row.
    pub max_seq_len: usize,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<u32>,
}

/// The rows of a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lesson {
    /// Rows.
    pub rows: Vec<Row>,
    /// For each, where the student wrote its completion: the log-prob that it gave each token of it,
    /// at temperature 1.
    pub written: Vec<Option<Vec<f32>>>,
}

impl Lesson {
    /// `rows` as they are.
    pub fn given(rows: &[Row]) -> Self {
        Self { rows: rows.to_vec(), written: vec![None; rows.len()] }
    }

    /// `rows` with completions in the place of their last trained part. A row that has no prompt, or
    /// whose prompt leaves no room, stays as it is. `seed` decides who writes, and every token.
    ///
    /// # Errors
    /// When a model cannot be computed.
    pub fn written(
        rows: &[Row],
        writing: &Writing,
        student: &Decoder,
        teacher: Option<&Decoder>,
        seed: u64,
    ) -> Result<Self> {
        let mut lesson = Self::given(rows);
        let is_students =
            |&row: &usize| draw(seed, row as u64, 0, WHO_WRITES) < writing.on_policy_fraction;
        let (own, others): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(is_students);
        for (row, tokens) in writing.complete(rows, &own, student, seed)? {
            lesson.complete(row, &tokens.ids, Some(tokens.logps));
        }
        if let (true, Some(teacher)) = (writing.teacher_completions, teacher) {
            for (row, tokens) in writing.complete(rows, &others, teacher, seed)? {
                lesson.complete(row, &tokens.ids, None);
            }
        }
        Ok(lesson)
    }

    /// Puts `tokens` in the place of the last trained part of a row, and trains nothing else of it.
    fn complete(&mut self, row: usize, tokens: &[u32], logps: Option<Vec<f32>>) {
        let prompt = prompt_len(&self.rows[row]);
        let Row { input_ids, completion_mask, .. } = &mut self.rows[row];
        input_ids.truncate(prompt);
        input_ids.extend(tokens);
        completion_mask.clear();
        completion_mask.resize(prompt, false);
        completion_mask.resize(prompt + tokens.len(), true);
        self.written[row] = logps;
    }

    /// For each target of the rows, in their order, the student's log-prob where it wrote it.
    pub fn written_targets(&self) -> impl Iterator<Item = Option<f32>> {
        self.rows.iter().zip(&self.written).flat_map(|(row, written)| {
            // The first token of a row follows nothing.
            let trained = row.completion_mask.iter().skip(1).filter(|&&trained| trained).count();
            (0..trained).map(move |at| written.as_ref().and_then(|logps| logps.get(at).copied()))
        })
    }

    /// Share of the rows that the student wrote.
    pub fn on_policy(&self) -> f64 {
        self.written.iter().flatten().count() as f64 / self.written.len().max(1) as f64
    }
}

/// The place, beyond every token's, whose draw decides who writes a completion.
const WHO_WRITES: u64 = u64::MAX;

/// Tokens before the last trained part.
fn prompt_len(row: &Row) -> usize {
    let mask = &row.completion_mask;
    let end = mask.iter().rposition(|&trained| trained).map_or(0, |last| last + 1);
    end - mask[..end].iter().rev().take_while(|&&trained| trained).count()
}

impl Writing {
    /// Bytes that `model` needs to write so many rows: keys, values and logits.
    pub fn bytes(&self, model: &Decoder, rows: usize) -> usize {
        let config = &model.config;
        let kept = 2 * config.num_key_value_heads * config.head_dim * model.blocks.len();
        size_of::<f32>() * rows * (self.max_seq_len * kept + config.vocab_size)
    }

    /// Completions by `model` of those of `rows` that have room for one, with their places.
    fn complete(
        &self,
        rows: &[Row],
        places: &[usize],
        model: &Decoder,
        seed: u64,
    ) -> Result<Vec<(usize, Tokens)>> {
        let most = self.max_seq_len.min(model.config.max_position_embeddings);
        let request = |&place: &usize| {
            let row = &rows[place];
            let prompt = row.input_ids[..prompt_len(row)].to_vec();
            let max_new_tokens = self.max_new_tokens.min(most.saturating_sub(prompt.len()));
            let request = Request {
                id: 0,
                prompt,
                completions: 1,
                max_new_tokens,
                stop_tokens: self.stop_tokens.clone(),
                sampling: Sampling { temperature: self.temperature as f32, ..Sampling::default() },
                seed,
                row: place as u64,
                top_logprobs: 0,
            };
            (!request.prompt.is_empty() && max_new_tokens > 0).then_some((place, request))
        };
        let (places, requests): (Vec<usize>, Vec<Request>) =
            places.iter().filter_map(request).unzip();
        Ok(places.into_iter().zip(complete(model, requests, |_| Ok(()))?).collect())
    }
}
