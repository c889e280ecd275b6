//! Losses on values inside the models: the student's stream behind some blocks, or what attention
//! adds to it there, should be the teacher's behind others (FitNets, Romero et al. 2015; TinyBERT,
//! Jiao et al. 2020, with DistilBERT's cosine). Where the teacher is wider, the student's values are
//! projected first, by matrices that are learned with it.

use std::str::FromStr;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};
use halter_core::model::init;
use halter_core::model::param::{Grads, Param};
use halter_core::train::method::Figures;
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::pass::{Pass, Tap};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// How far values are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InsideDistance {
    /// One less the cosine of the angle between them.
    #[default]
    Cosine,
    /// The mean square of their difference.
    Mse,
}

impl InsideDistance {
    /// Of each row of `(tokens, width)`: `(tokens,)`.
    fn of(self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mse => Ok((student - teacher)?.sqr()?.mean(D::Minus1)?),
            Self::Cosine => {
                let norm = |x: &Tensor| Ok::<_, Error>((x.sqr()?.sum(D::Minus1)? + 1e-12)?.sqrt()?);
                let product = (student * teacher)?.sum(D::Minus1)?;
                let cosine = (product / (norm(student)? * norm(teacher)?)?)?;
                Ok((1.0 - cosine)?)
            }
        }
    }
}

/// Which of the teacher's blocks each of some of the student's blocks should be like, counted from 0:
/// `0:1,9:14`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerMap(Vec<(usize, usize)>);

impl FromStr for LayerMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let pair = |part: &str| {
            let (student, teacher) = part.split_once(':')?;
            Some((student.trim().parse().ok()?, teacher.trim().parse().ok()?))
        };
        let pairs: Option<Vec<(usize, usize)>> = text.split(',').map(pair).collect();
        pairs.map(Self).ok_or_else(|| {
            Error::config(format!("`{text}` is no map of layers"))
                .hint("expected pairs of blocks, the student's first, as `0:1,9:14`")
        })
    }
}

impl TryFrom<String> for LayerMap {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LayerMap> for String {
    fn from(LayerMap(pairs): LayerMap) -> Self {
        let pairs: Vec<String> =
            pairs.iter().map(|(student, teacher)| format!("{student}:{teacher}")).collect();
        pairs.join(",")
    }
}

impl LayerMap {
    /// Each of the student's blocks to the one as far up in the teacher (TinyBERT's uniform map).
    pub fn even(student: usize, teacher: usize) -> Self {
        let place = |at: usize| ((at + 1) * teacher).div_ceil(student.max(1)).max(1) - 1;
        Self((0..student).map(|at| (at, place(at))).collect())
    }

    /// Pairs of taps of the same kind.
    fn taps(&self, kind: fn(usize) -> Tap) -> Vec<(Tap, Tap)> {
        self.0.iter().map(|&(student, teacher)| (kind(student), kind(teacher))).collect()
    }
}

/// What is compared of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Term {
    /// Of the mean distance.
    weight: f64,
    student: Tap,
    teacher: Tap,
}

/// The comparisons of a run, and their projections.
#[derive(Debug)]
pub struct Inside {
    distance: InsideDistance,
    terms: Vec<Term>,
    /// Of the terms, `(teacher's width, student's)`; none where both models are of one width.
    projections: Vec<Param>,
    grads: Grads,
    optimizer: AdamW,
}

/// The two models' sides.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    /// The student's hidden size.
    pub student: usize,
    /// The teacher's.
    pub teacher: usize,
}

impl Inside {
    /// Comparisons of the streams and of attention's additions, as far as their weights are above
    /// zero.
    ///
    /// # Errors
    /// A projection that cannot be made.
    pub fn new(
        map: &LayerMap,
        (hidden_weight, attention_weight): (f64, f64),
        distance: InsideDistance,
        widths: Widths,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut terms = Vec::new();
        for (weight, kind) in
            [(hidden_weight, Tap::Hidden as fn(usize) -> Tap), (attention_weight, Tap::Attention)]
        {
            let pairs = if weight > 0.0 { map.taps(kind) } else { Vec::new() };
            let weight = weight / pairs.len().max(1) as f64;
            let term = |(student, teacher)| Term { weight, student, teacher };
            terms.extend(pairs.into_iter().map(term));
        }
        let projected = widths.student != widths.teacher;
        let count = if projected { terms.len() } else { 0 };
        let projection = |at: usize| -> Result<Param> {
            let name = format!("projections.{at}.weight");
            let shape = [widths.teacher, widths.student];
            let scale = (widths.student as f32).sqrt().recip();
            let weight = init::tensor(&name, &shape, scale, seed, device)?;
            Ok(Param::trained(name, weight, at))
        };
        let projections = (0..count).map(projection).collect::<Result<Vec<_>>>()?;
        let grads = Grads::zeros(&projections)?;
        let optimizer = AdamW::new(AdamWConfig::default(), &projections)?;
        Ok(Self { distance, terms, projections, grads, optimizer })
    }

    /// Where the student's values are wanted.
    pub fn student_taps(&self) -> Vec<Tap> {
        self.terms.iter().map(|term| term.student).collect()
    }

    /// Where the teacher's are.
    pub fn teacher_taps(&self) -> Vec<Tap> {
        self.terms.iter().map(|term| term.teacher).collect()
    }

    /// The part of the loss of a microbatch in a step of so many tokens, with its projections as the
    /// graph knows them. The distances go into `figures`.
    ///
    /// # Errors
    /// A tap of the teacher that is not there.
    pub fn loss(
        &self,
        pass: &Pass,
        of_teacher: &[(Tap, Tensor)],
        step_tokens: usize,
        figures: &mut Figures,
    ) -> Result<(Tensor, Vec<Var>)> {
        let projections = self.projections.iter().filter_map(Param::dense);
        let projections: Vec<Var> =
            projections.map(Var::from_tensor).collect::<candle_core::Result<_>>()?;
        let mut parts = Vec::new();
        for (at, term) in self.terms.iter().enumerate() {
            let (_, wanted) = of_teacher
                .iter()
                .find(|(tap, _)| *tap == term.teacher)
                .ok_or_else(|| Error::config(format!("the teacher has no `{:?}`", term.teacher)))?;
            let own = pass.tapped(term.student)?;
            let distances = match projections.get(at) {
                Some(projection) => self.distance.of(&own.matmul(&projection.t()?)?, wanted)?,
                None => self.distance.of(own, wanted)?,
            };
            let key = if matches!(term.student, Tap::Hidden(_)) { "hidden" } else { "attention" };
            let values = distances.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
            figures.note(&format!("{key}_distance"), &values);
            parts.push((distances.sum_all()? * (term.weight / step_tokens as f64))?);
        }
        let loss = Tensor::stack(&parts, 0)?.sum_all()?.to_dtype(candle_core::DType::F64)?;
        Ok((loss, projections))
    }

    /// Adds what a loss's backward found for the projections.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn accumulate(&self, projections: &[Var], found: &GradStore) -> Result<()> {
        for (projection, grad) in projections.iter().zip(self.grads.buffers()) {
            if let Some(more) = found.get(projection) {
                grad.slice_set(&(grad + more)?, 0, 0)?;
            }
        }
        Ok(())
    }

    /// Moves the projections after a step.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn update(&mut self, learning_rate: f64) -> Result<()> {
        let params: Vec<&Param> = self.projections.iter().collect();
        self.optimizer.update(&params, &self.grads, learning_rate, 1.0)?;
        self.grads.clear()
    }

    /// What changes in training.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let params: Vec<&Param> = self.projections.iter().collect();
        let values = params.iter().filter_map(|param| Some((param.name().into(), param.dense()?)));
        values.chain(self.optimizer.tensors(&params)).collect()
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Goes on as after so many updates.
    pub fn set_steps(&mut self, steps: u64) {
        self.optimizer.set_steps(steps);
    }

    /// Bytes of the teacher's and the student's values that a microbatch of so many tokens holds.
    pub fn bytes(&self, widths: Widths, tokens: usize) -> usize {
        // The student's are a leaf, and the projected ones stand beside them in the graph.
        4 * tokens * self.terms.len() * (2 * widths.student + 4 * widths.teacher)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn layers_are_mapped_evenly_or_as_it_is_said() {
        let even = |student, teacher| String::from(LayerMap::even(student, teacher));
        assert_eq!(even(2, 6), "0:2,1:5");
        assert_eq!(even(3, 3), "0:0,1:1,2:2");
        assert_eq!(even(4, 6), "0:1,1:2,2:4,3:5");
        assert_eq!(even(3, 2), "0:0,1:1,2:1");
        let map: LayerMap = "0:1, 9:14".parse().unwrap();
        assert_eq!(map, LayerMap(vec![(0, 1), (9, 14)]));
        for text in ["", "1", "1:", "1:2,", "a:b"] {
            LayerMap::from_str(text).unwrap_err();
        }
    }

    #[test]
    fn distances_are_these() {
        let tensor = |rows: &[[f32; 2]; 2]| Tensor::new(rows, &Device::Cpu).unwrap();
        let (a, b) = (tensor(&[[3.0, 4.0], [1.0, 0.0]]), tensor(&[[6.0, 8.0], [0.0, 2.0]]));
        let of = |distance: InsideDistance| distance.of(&a, &b).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(of(InsideDistance::Mse), [12.5, 2.5]);
        let cosine = of(InsideDistance::Cosine);
        assert!(cosine[0].abs() < 1e-6 && (cosine[1] - 1.0).abs() < 1e-6, "{cosine:?}");
    }
}
