//! From a template to a problem: numbers are drawn, words are filled in, the steps worked out.

use anyhow::{Context, Result, bail};

use crate::random::Random;
use crate::templates::{PEOPLE, TEMPLATES, THINGS, Template};

/// No number of a problem is larger.
const LARGEST: i64 = 99;
/// Larger factors, divisors and quotients would ask for more than the tables.
const TABLES: (i64, i64) = (9, 12);

/// One problem, in every wording of its solution.
#[derive(Debug, Clone)]
pub struct Problem {
    pub template: &'static str,
    pub numbers: Vec<i64>,
    /// What is told, without the question.
    pub story: String,
    /// The last sentence.
    pub question: String,
    /// Steps of the worked solution, one a line, by wording; the first is the one that is taught.
    pub solutions: Vec<String>,
    pub answer: i64,
    words: Vec<(&'static str, String)>,
}

impl Problem {
    /// Story and question.
    pub fn text(&self) -> String {
        format!("{} {}", self.story, self.question).trim_start().to_string()
    }

    /// Whether the problem belongs to the held-out ones. It depends on the template and the numbers
    /// alone (FNV-1a), so that no wording of a held-out problem is ever trained on.
    pub fn is_held_out(&self) -> bool {
        let key = format!("{} {:?}", self.template, self.numbers);
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        (hash >> 32) % 10 == 0
    }

    /// Draws a problem.
    ///
    /// # Errors
    /// A template with a mistake in it.
    pub fn draw(random: &mut Random) -> Result<Self> {
        let template = random.pick(&TEMPLATES);
        Self::of(template, random).with_context(|| format!("template `{}`", template.name))
    }

    /// The first wording of the solution and its answer, with a mistake in one of its equations that
    /// is carried on; `None` where that does not change the answer, or leaves the bounds.
    ///
    /// # Errors
    /// A template with a mistake in it.
    pub fn wrong(&self, mistake: Mistake) -> Result<Option<(String, i64)>> {
        let template = TEMPLATES.iter().find(|template| template.name == self.template);
        let text = template.context("no such template")?.solutions[0];
        let mut fill = Filler { words: self.words.clone(), numbers: Vec::new(), last: 0 };
        let text = mistake.in_text(text);
        let is_solved = fill.set(&self.numbers).solve_with(&text, mistake)?;
        if !is_solved || fill.last == self.answer {
            return Ok(None);
        }
        Ok(Some((fill.words(&text)?, fill.last)))
    }

    fn of(template: &'static Template, random: &mut Random) -> Result<Self> {
        let mut fill = Filler::new(random);
        let question = *random.pick(template.questions);
        let numbers = loop {
            let draw = |&(low, high): &(i64, i64)| random.between(low, high);
            let numbers: Vec<i64> = template.ranges.iter().map(draw).collect();
            if fill.set(&numbers).solve(template.solutions[0])? {
                break numbers;
            }
        };
        let text = fill.words(question)?;
        let cut = text.rfind(". ").map_or(0, |stop| stop + 2);
        let (story, question) = (text[..cut].trim_end(), &text[cut..]);
        let mut solutions = Vec::new();
        for solution in template.solutions {
            if !fill.set(&numbers).solve(solution)? {
                bail!("`{solution}` cannot be worked out with {numbers:?}");
            }
            solutions.push(fill.words(solution)?);
        }
        Ok(Self {
            template: template.name,
            numbers,
            story: story.to_string(),
            question: question.to_string(),
            solutions,
            answer: fill.last,
            words: fill.words,
        })
    }
}

/// What is wrong with a solution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Nothing.
    None,
    /// An equation, from zero, whose value is off by so much.
    Slip { equation: usize, by: i64 },
    /// Every `+` is a `-` and the other way round; `*` and `/` are a `+`.
    Operation,
}

impl Mistake {
    fn in_text(self, text: &str) -> String {
        let swapped = |letter: char| match letter {
            '+' => '-',
            '-' | '*' | '/' => '+',
            other => other,
        };
        let mut inside = false;
        let swap = |letter: char| {
            inside = (inside || letter == '[') && letter != ']';
            if inside && self == Self::Operation { swapped(letter) } else { letter }
        };
        text.chars().map(swap).collect()
    }
}

/// The words and numbers of one problem.
struct Filler {
    words: Vec<(&'static str, String)>,
    numbers: Vec<(String, i64)>,
    last: i64,
}

impl Filler {
    fn new(random: &mut Random) -> Self {
        let first = random.below(PEOPLE.len());
        let second = (first + 1 + random.below(PEOPLE.len() - 1)) % PEOPLE.len();
        let thing = random.below(THINGS.len());
        let other = (thing + 1 + random.below(THINGS.len() - 1)) % THINGS.len();
        let (name, he) = PEOPLE[first];
        let words = [
            ("N", name),
            ("M", PEOPLE[second].0),
            ("he", if he { "he" } else { "she" }),
            ("He", if he { "He" } else { "She" }),
            ("thing", THINGS[thing].0),
            ("things", THINGS[thing].1),
            ("other", THINGS[other].0),
            ("others", THINGS[other].1),
        ];
        let words = words.into_iter().map(|(key, word)| (key, word.to_string())).collect();
        Self { words, numbers: Vec::new(), last: 0 }
    }

    fn set(&mut self, numbers: &[i64]) -> &mut Self {
        let named =
            |(index, &number): (usize, &i64)| (char::from(b'a' + index as u8).to_string(), number);
        self.numbers = numbers.iter().enumerate().map(named).collect();
        self
    }

    /// Works out the equations of `text`; `false` where a number would be out of bounds.
    fn solve(&mut self, text: &str) -> Result<bool> {
        self.solve_with(text, Mistake::None)
    }

    fn solve_with(&mut self, text: &str, mistake: Mistake) -> Result<bool> {
        for (index, equation) in text.split('[').skip(1).enumerate() {
            let equation = equation.split(']').next().unwrap_or_default();
            let [left, sign, right, "=", bound] =
                equation.split_whitespace().collect::<Vec<_>>()[..]
            else {
                bail!("`[{equation}]` is not an equation");
            };
            let Some(value) = calculate(self.number(left)?, sign, self.number(right)?) else {
                return Ok(false);
            };
            let value = match mistake {
                Mistake::Slip { equation, by } if equation == index => value + by,
                _ => value,
            };
            if !(1..=LARGEST).contains(&value) {
                return Ok(false);
            }
            self.numbers.push((bound.to_string(), value));
            self.last = value;
        }
        Ok(true)
    }

    fn number(&self, name: &str) -> Result<i64> {
        let found = self.numbers.iter().find(|(known, _)| known == name);
        found.map(|(_, number)| *number).with_context(|| format!("no number `{name}`"))
    }

    /// `text` with all that stands in braces and brackets written out.
    fn words(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '[']) {
            out.push_str(&rest[..open]);
            let close = rest[open..].find(['}', ']']).context("a bracket is not closed")? + open;
            let inner = &rest[open + 1..close];
            if rest.as_bytes()[open] == b'[' {
                for (index, part) in inner.split_whitespace().enumerate() {
                    let space = if index == 0 { "" } else { " " };
                    let number = self.number(part).map(|number| number.to_string());
                    out.push_str(space);
                    out.push_str(number.as_deref().unwrap_or(part));
                }
            } else if let Some((_, word)) = self.words.iter().find(|(key, _)| *key == inner) {
                out.push_str(word);
            } else {
                out.push_str(&self.number(inner)?.to_string());
            }
            rest = &rest[close + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// `left sign right`, if it is a whole number within bounds.
pub fn calculate(left: i64, sign: &str, right: i64) -> Option<i64> {
    let in_tables = |a: i64, b: i64| a.min(b) <= TABLES.0 && a.max(b) <= TABLES.1;
    let value = match sign {
        "+" => left + right,
        "-" => left - right,
        "*" if in_tables(left, right) => left * right,
        "/" if right >= 2 && left % right == 0 && in_tables(right, left / right) => left / right,
        _ => return None,
    };
    (1..=LARGEST).contains(&value).then_some(value)
}
