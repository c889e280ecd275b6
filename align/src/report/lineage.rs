//! What is made from what, as a drawing: a row for each round, stages from left to right.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kind;
use crate::plan::{Plan, Status};

const BOX: (f64, f64) = (116.0, 36.0);
const ROOM: (f64, f64) = (38.0, 44.0);
const EDGE: f64 = 14.0;

/// The drawing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lineage {
    width: f64,
    height: f64,
    boxes: Vec<Place>,
    edges: Vec<String>,
}

/// A stage in the drawing.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Place {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    name: String,
    /// Its command, or its accuracy.
    detail: String,
    is_model: bool,
    is_done: bool,
}

/// Draws the stages of `plan`; measurements are written into the box of what they measure.
pub fn draw(plan: &Plan) -> Lineage {
    let columns: BTreeMap<&str, usize> =
        plan.recipe.stages.iter().enumerate().map(|(at, s)| (s.name.as_str(), at + 1)).collect();
    let mut boxes = vec![Place {
        x: EDGE,
        y: EDGE,
        width: BOX.0,
        height: BOX.1,
        name: "base".into(),
        detail: accuracy(plan, None).unwrap_or_else(|| "model".into()),
        is_model: true,
        is_done: true,
    }];
    let mut place: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, node) in plan.graph.nodes.iter().enumerate() {
        let Some(&column) = columns.get(node.name.as_str()).filter(|_| node.round > 0) else {
            continue;
        };
        place.insert(at, boxes.len());
        boxes.push(Place {
            x: EDGE + column as f64 * (BOX.0 + ROOM.0),
            y: EDGE + (node.round - 1) as f64 * (BOX.1 + ROOM.1),
            name: node.name.clone(),
            detail: accuracy(plan, Some(at)).unwrap_or_else(|| node.kind.name.into()),
            is_model: node.kind.answers,
            is_done: matches!(plan.steps[at].status, Status::Done(_)),
            ..boxes[0].clone()
        });
    }
    let mut edges = Vec::new();
    for (&at, &to) in &place {
        let node = &plan.graph.nodes[at];
        for input in &node.inputs {
            if let Some(&from) = place.get(input) {
                edges.push(edge(&boxes[from], &boxes[to]));
            }
        }
        let texts = plan.steps[at].options.values().flat_map(texts);
        if texts.into_iter().any(|text| text == plan.recipe.model) {
            edges.push(edge(&boxes[0], &boxes[to]));
        }
    }
    let far = |of: fn(&Place) -> f64| boxes.iter().map(of).fold(0.0, f64::max) + EDGE;
    Lineage {
        width: far(|place| place.x + place.width),
        // Edges within a row bow below it.
        height: far(|place| place.y + place.height) + 22.0,
        boxes,
        edges,
    }
}

fn texts(value: &toml::Value) -> Vec<&str> {
    match value {
        toml::Value::String(text) => vec![text],
        toml::Value::Array(values) => values.iter().filter_map(toml::Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The accuracy of the model that the stage `of` made.
fn accuracy(plan: &Plan, of: Option<usize>) -> Option<String> {
    let found = plan.graph.nodes.iter().zip(&plan.steps).find(|(node, _)| {
        node.kind.name == kind::EVAL.name && node.of == of && (of.is_some() || node.round == 0)
    });
    match &found?.1.status {
        // Rounded as the template's tables are: halves away from zero.
        Status::Done(done) => super::accuracies(done)
            .first()
            .map(|(_, share)| format!("{:.1} %", (1000.0 * share).round() / 10.0)),
        _ => None,
    }
}

/// From the right side of one to the left of a neighbour; below the row to one farther away; from
/// bottom to top where the other is in a later round.
fn edge(from: &Place, to: &Place) -> String {
    let middle = from.y + from.height / 2.0;
    let (start, end) = (from.x + from.width, to.x);
    if from.y < to.y {
        let (x1, y1) = (from.x + 0.7 * from.width, from.y + from.height);
        let (x2, y2) = (to.x + 0.3 * to.width, to.y);
        let bend = y1 + ROOM.1 / 2.0 + 4.0;
        return format!(
            "M{x1:.0} {y1:.0}C{x1:.0} {bend:.0} {x2:.0} {:.0} {x2:.0} {y2:.0}",
            y2 - ROOM.1 / 2.0
        );
    }
    if end - start <= ROOM.0 + 1.0 {
        return format!("M{start:.0} {middle:.0}L{end:.0} {middle:.0}");
    }
    let below = from.y + from.height;
    let (x1, x2) = (from.x + 0.75 * from.width, to.x + 0.25 * to.width);
    // The farther, the deeper, so that edges stay apart.
    let depth = below + 10.0 + 4.0 * ((end - start) / (BOX.0 + ROOM.0)).min(6.0);
    format!("M{x1:.0} {below:.0}C{x1:.0} {depth:.0} {x2:.0} {depth:.0} {x2:.0} {below:.0}")
}
