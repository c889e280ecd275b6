//! An optimizer step whose updates are inside backward.

use std::collections::HashMap;

use super::method::{Backward, Figures};
use super::optimizer::AdamW;
use crate::model::Decoder;
use crate::model::param::{Grads, Param};
use crate::{Error, ErrorKind, Result};

/// A whole step of the optimizer in the one pass that `each_pass` makes: every parameter is updated,
/// and its gradient forgotten, as soon as backward has completed it. Also returns the sum of squares
/// of each trained parameter's gradient. `grads` are those of [`Decoder::rolling_grads`].
///
/// # Errors
/// Those of `each_pass`, and a gradient that is not finite: some parameters are updated by then.
pub fn update_in_backward(
    model: &Decoder,
    grads: &Grads,
    optimizer: &mut AdamW,
    learning_rate: f64,
    each_pass: impl FnOnce(Backward) -> Result<Figures>,
) -> Result<(Figures, Vec<f64>)> {
    let mut squared_norms = HashMap::new();
    let figures = each_pass(&mut |pass, loss| {
        optimizer.begin_step();
        pass.backward_each(loss, grads, |params| {
            for param in params {
                let squared_norm = grads.squared_norm_of(param)?;
                if !squared_norm.is_finite() {
                    let message = format!("the gradient of `{}` is not finite", param.name());
                    return Err(Error::new(ErrorKind::Numeric, message));
                }
                squared_norms.insert(param.name().to_string(), squared_norm);
            }
            optimizer.update_some(params, grads, learning_rate, 1.0)?;
            grads.clear_of(params)
        })
    })?;
    let norm_of = |param: &Param| squared_norms.get(param.name()).copied().unwrap_or_default();
    Ok((figures, model.trained().into_iter().map(norm_of).collect()))
}
