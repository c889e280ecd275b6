//! From plain spelling to an expression, by recursive descent.

use num_bigint::BigInt;
use num_rational::BigRational;

use super::expression::Expression;
use super::value::FUNCTIONS;

/// How deep brackets and fractions may nest.
const MAX_DEPTH: usize = 24;
/// Longest run of letters that is a product of variables.
const MAX_LETTERS: usize = 3;
/// The largest exponent of ten in a literal.
const MAX_SCALE: u32 = 400;

/// The expression that all of `text` is.
pub(super) fn parse(text: &str) -> Option<Expression> {
    let mut parser = Parser { chars: text.chars().collect(), at: 0, depth: 0 };
    let value = parser.sum()?;
    parser.skip_spaces();
    (parser.at == parser.chars.len()).then_some(value)
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn skip_spaces(&mut self) {
        while self.chars.get(self.at) == Some(&' ') {
            self.at += 1;
        }
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        self.skip_spaces();
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, wanted: &str) -> bool {
        self.skip_spaces();
        let there = self.chars[self.at..].iter().take(wanted.chars().count());
        let found = there.copied().eq(wanted.chars());
        self.at += if found { wanted.chars().count() } else { 0 };
        found
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let value = (self.depth <= MAX_DEPTH).then(|| read(self)).flatten();
        self.depth -= 1;
        value
    }

    /// `term ± term ± …`
    fn sum(&mut self) -> Option<Expression> {
        let negative = self.sign();
        let first = self.product()?;
        let mut sum = if negative { first.negated() } else { first };
        loop {
            sum = match self.peek() {
                Some('+') if self.eat("+") => sum.plus(&self.product()?)?,
                Some('-') if self.eat("-") => sum.plus(&self.product()?.negated())?,
                _ => return Some(sum),
            };
        }
    }

    /// Whether a minus stands here; a plus is taken as well.
    fn sign(&mut self) -> bool {
        let negative = self.eat("-");
        if !negative {
            self.eat("+");
        }
        negative
    }

    /// `factor * factor / factor …`, and factors side by side.
    fn product(&mut self) -> Option<Expression> {
        let mut product = self.factor()?;
        loop {
            product = match self.peek() {
                Some('*') if self.eat("*") => {
                    let negative = self.sign();
                    let factor = self.factor()?;
                    product.times(&if negative { factor.negated() } else { factor })?
                }
                Some('/') if self.eat("/") => product.over(&self.factor()?)?,
                Some(c) if c.is_alphabetic() || "(√\\∞".contains(c) => {
                    product.times(&self.factor()?)?
                }
                _ => return Some(product),
            };
        }
    }

    fn factor(&mut self) -> Option<Expression> {
        let base = self.base()?;
        if !self.eat("^") {
            return Some(base);
        }
        let exponent = match self.peek()? {
            '{' | '(' => self.base()?,
            _ => {
                let negative = self.sign();
                let value = self.base()?;
                if negative { value.negated() } else { value }
            }
        };
        base.to_the(&exponent)
    }

    fn base(&mut self) -> Option<Expression> {
        match self.peek()? {
            '(' => self.bracketed("(", ")"),
            '{' => self.bracketed("{", "}"),
            '√' => self.root(),
            '\\' => self.fraction(),
            '∞' if self.eat("∞") => Some(Expression::letter('∞')),
            c if c.is_ascii_digit() || c == '.' => self.number(),
            c if c.is_alphabetic() => self.letters(),
            _ => None,
        }
    }

    fn bracketed(&mut self, open: &str, close: &str) -> Option<Expression> {
        self.nested(|parser| {
            let found = parser.eat(open);
            let inside = parser.sum().filter(|_| found)?;
            parser.eat(close).then_some(inside)
        })
    }

    /// `√x`, `√{x}`, `√[3]{x}`
    fn root(&mut self) -> Option<Expression> {
        self.nested(|parser| {
            parser.eat("√");
            let degree = match parser.eat("[") {
                true => {
                    let degree = parser.digits().parse().ok()?;
                    parser.eat("]").then_some(degree)?
                }
                false => 2,
            };
            let inside = parser.base()?;
            inside.root(degree)
        })
    }

    /// `\frac{a}{b}`, where a digit needs no braces.
    fn fraction(&mut self) -> Option<Expression> {
        self.nested(|parser| {
            parser.eat("\\frac").then_some(())?;
            let (top, bottom) = (parser.argument()?, parser.argument()?);
            top.over(&bottom)
        })
    }

    fn argument(&mut self) -> Option<Expression> {
        match self.peek()? {
            '{' => self.bracketed("{", "}"),
            c => {
                self.at += 1;
                match c.to_digit(10) {
                    Some(digit) => Expression::number(BigInt::from(digit).into()),
                    None => c.is_alphabetic().then(|| Expression::letter(c)),
                }
            }
        }
    }

    fn digits(&mut self) -> String {
        let rest = self.chars[self.at..].iter();
        let digits: String = rest.take_while(|c| c.is_ascii_digit()).collect();
        self.at += digits.len();
        digits
    }

    /// `12`, `1,234.5`, `1.5e3`, and the mixed numbers `1 1/2` and `1\frac12`.
    fn number(&mut self) -> Option<Expression> {
        let mut whole = self.digits();
        while self.is_thousands_comma() {
            self.at += 1;
            whole.push_str(&self.digits());
        }
        let mut fraction = String::new();
        if self.chars.get(self.at) == Some(&'.') {
            self.at += 1;
            fraction = self.digits();
        }
        let scale = self.power_of_ten();
        let digits: BigInt = format!("{whole}{fraction}").parse().ok()?;
        let shift = i64::from(scale.unwrap_or(0)) - i64::try_from(fraction.len()).ok()?;
        let power = u32::try_from(shift.unsigned_abs()).ok().filter(|power| *power <= MAX_SCALE)?;
        let power = BigInt::from(10).pow(power);
        let value = match shift < 0 {
            true => BigRational::new(digits, power),
            false => (digits * power).into(),
        };
        let value = Expression::number(value)?;
        match fraction.is_empty() && scale.is_none() {
            true => self.mixed(value),
            false => Some(value),
        }
    }

    /// Whether a comma with exactly three digits after it stands here.
    fn is_thousands_comma(&self) -> bool {
        let mut rest = self.chars[self.at..].iter();
        rest.next() == Some(&',')
            && rest.by_ref().take(3).filter(|c| c.is_ascii_digit()).count() == 3
            && !rest.next().is_some_and(char::is_ascii_digit)
    }

    /// The exponent of `e3`, `E-3`.
    fn power_of_ten(&mut self) -> Option<i32> {
        let start = self.at;
        if matches!(self.chars.get(self.at), Some('e' | 'E')) {
            self.at += 1;
            let negative = self.chars.get(self.at) == Some(&'-');
            self.at += usize::from(matches!(self.chars.get(self.at), Some('-' | '+')));
            if let Ok(exponent) = self.digits().parse::<i32>() {
                return Some(if negative { -exponent } else { exponent });
            }
        }
        self.at = start;
        None
    }

    /// Adds the fraction of a mixed number to its `whole`, if one follows.
    fn mixed(&mut self, whole: Expression) -> Option<Expression> {
        let start = self.at;
        let fraction = match self.peek() {
            Some('\\') => self.fraction().filter(|part| part.rational().is_some()),
            Some(c) if c.is_ascii_digit() && self.at > start => self.plain_fraction(),
            _ => None,
        };
        match fraction {
            Some(fraction) => whole.plus(&fraction),
            None => {
                self.at = start;
                Some(whole)
            }
        }
    }

    fn plain_fraction(&mut self) -> Option<Expression> {
        let top: BigInt = self.digits().parse().ok()?;
        let bottom: BigInt = self.eat("/").then(|| self.digits())?.parse().ok()?;
        Expression::number(top.into())?.over(&Expression::number(bottom.into())?)
    }

    /// One letter, a name, or up to three letters side by side that begin with no function's name.
    fn letters(&mut self) -> Option<Expression> {
        let rest = self.chars[self.at..].iter();
        let run: String = rest.take_while(|c| c.is_alphabetic()).collect();
        if run.starts_with("sqrt") {
            self.at += 4;
            return self.nested(|parser| parser.base()?.root(2));
        }
        if run.starts_with("pi") {
            self.at += 2;
            return Some(Expression::letter('π'));
        }
        if matches!(run.as_str(), "inf" | "infinity") {
            self.at += run.len();
            return Some(Expression::letter('∞'));
        }
        let is_function = FUNCTIONS.iter().any(|name| run.starts_with(name));
        if is_function || run.chars().count() > MAX_LETTERS {
            return None;
        }
        // the rest of the run is read as further factors
        self.at += 1;
        run.chars().next().map(Expression::letter)
    }
}
