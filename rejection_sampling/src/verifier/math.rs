//! Are two mathematical answers the same?
//!
//! An answer is read as a number or expression, a tuple or interval, a set or list, or plain text.
//!
//! - Expressions are sums of products of rationals, square roots of whole numbers, π and letters,
//!   and quotients of such sums; they are compared exactly: `0.5` = `\frac12`, `\frac{2}{\sqrt2}` =
//!   `√2`, `(x+1)^2` = `x^2+2x+1`, and `0.333` ≠ `1/3`. Only where one side is rational and the
//!   other an irrational constant do they agree to a relative 10⁻⁶: `1.4142136` = `√2`.
//! - Units and money are not compared: `$5`, `5 dollars`, `5\text{ cm}`, `5 (apples)` and `5°` are 5. A
//!   single letter outside `\text{}` is a variable, no unit.
//! - The name of a function (`sin`, `ln`) makes text of what it stands in.
//! - Where one side has a percent sign, `50%` is 50 and also 0.5; where both have, 50% is 50%.
//! - `x = 5` and `x \in [1, 2)` are what follows. Lists (`1, 2`, `1 or 2`), sets and unions match in
//!   any order, tuples and intervals in theirs, with their kinds of bracket.
//! - All else is text, compared without white space, case and full stop.
//!
//! Answers of more than [`MAX_CHARS`] characters, expressions of more than a few dozen terms, and
//! powers of more than two thousand bits are compared as text, so that no input takes long.

mod expression;
mod latex;
mod parser;
mod value;
mod words;

#[cfg(test)]
mod tests;

use halter_core::verify::Number;

pub use words::number_in_words;

/// Characters of the longest answer that is read as mathematics.
pub const MAX_CHARS: usize = 300;

/// Whether two answers, in LaTeX or plain text, are the same.
///
/// ```
/// use halter_rejection_sampling::verifier::math::equivalent;
/// assert!(equivalent(r"\dfrac{1}{2}", "0.5"));
/// assert!(equivalent(r"\text{even}", "Even."));
/// assert!(!equivalent("(1, 2)", "(2, 1)"));
/// ```
pub fn equivalent(a: &str, b: &str) -> bool {
    if let (Some(a), Some(b)) = (Number::parse(a.trim()), Number::parse(b.trim())) {
        return a == b;
    }
    let too_long = [a, b].iter().any(|text| text.chars().nth(MAX_CHARS).is_some());
    if too_long {
        return value::folded(a) == value::folded(b);
    }
    let (a, b) = (latex::plain(a), latex::plain(b));
    let says_something = a.contains(char::is_alphanumeric);
    (a == b && says_something) || value::read(&a) == value::read(&b)
}
