//! Quotients of sums of `q·√r·x^a·y^b…`: rationals, square roots and letters, compared exactly.

use std::collections::BTreeMap;

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// Bits of the largest numerator or denominator.
const MAX_BITS: u64 = 2048;
/// Terms of the longest sum.
const MAX_TERMS: usize = 64;
/// Products of terms in one multiplication.
const MAX_PRODUCTS: usize = 256;
/// The largest number whose square root is brought into lowest form by trial division.
const MAX_RADICAND: u64 = 10_000_000_000;
/// The largest exponent.
const MAX_EXPONENT: u32 = 2000;
/// Relative difference at which a decimal is an irrational number.
const TOLERANCE: f64 = 1e-6;

/// `√radicand · letters`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Monomial {
    /// Without square factors, so that sums are the same only if their terms are.
    radicand: u64,
    /// Exponents, none of them zero; π is a letter.
    letters: BTreeMap<char, u32>,
}

impl Monomial {
    fn one() -> Self {
        Self { radicand: 1, letters: BTreeMap::new() }
    }

    /// The product and the whole factor that its root gives off.
    fn times(&self, other: &Self) -> Option<(Self, BigInt)> {
        let common = gcd(self.radicand, other.radicand);
        let radicand = (self.radicand / common).checked_mul(other.radicand / common)?;
        let mut letters = self.letters.clone();
        for (letter, exponent) in &other.letters {
            let sum = letters.entry(*letter).or_default();
            *sum = sum.checked_add(*exponent).filter(|sum| *sum <= MAX_EXPONENT)?;
        }
        let product = Self { radicand, letters };
        (radicand <= MAX_RADICAND).then_some((product, BigInt::from(common)))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A sum of terms, none of them zero.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sum(BTreeMap<Monomial, BigRational>);

impl Sum {
    fn term(monomial: Monomial, factor: BigRational) -> Self {
        Self(BTreeMap::from_iter((!factor.is_zero()).then_some((monomial, factor))))
    }

    fn constant(value: BigRational) -> Self {
        Self::term(Monomial::one(), value)
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        let mut terms = self.0.clone();
        for (monomial, factor) in &other.0 {
            add(&mut terms, monomial.clone(), factor.clone())?;
        }
        Some(Self(terms))
    }

    fn times(&self, other: &Self) -> Option<Self> {
        if self.0.len() * other.0.len() > MAX_PRODUCTS {
            return None;
        }
        let mut terms = BTreeMap::new();
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                let (monomial, root) = a.times(b)?;
                add(&mut terms, monomial, x * y * root)?;
            }
        }
        Some(Self(terms))
    }

    fn rational(&self) -> Option<BigRational> {
        match self.0.len() {
            0 => Some(BigRational::zero()),
            1 => self.0.get(&Monomial::one()).cloned(),
            _ => None,
        }
    }

    /// The value of a sum without letters other than π.
    fn approximate(&self) -> Option<f64> {
        self.0.iter().try_fold(0.0, |sum, (monomial, factor)| {
            let mut product = factor.to_f64()? * (monomial.radicand as f64).sqrt();
            for (letter, exponent) in &monomial.letters {
                let exponent = i32::try_from(*exponent).ok()?;
                product *= (*letter == 'π').then(|| std::f64::consts::PI.powi(exponent))?;
            }
            Some(sum + product)
        })
    }
}

/// Adds a term; `None` where the sum or the number grows too large.
fn add(
    terms: &mut BTreeMap<Monomial, BigRational>,
    monomial: Monomial,
    factor: BigRational,
) -> Option<()> {
    let sum = match terms.remove(&monomial) {
        Some(there) => there + factor,
        None => factor,
    };
    if !sum.is_zero() {
        let fits = sum.numer().bits() <= MAX_BITS && sum.denom().bits() <= MAX_BITS;
        if !fits || terms.len() >= MAX_TERMS {
            return None;
        }
        terms.insert(monomial, sum);
    }
    Some(())
}

/// A quotient of sums. Every operation gives `None` where there is no result, or where it would
/// grow beyond the limits of this file.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    top: Sum,
    /// Not zero.
    bottom: Sum,
}

impl Expression {
    fn whole(top: Sum) -> Self {
        Self { top, bottom: Sum::constant(BigRational::one()) }
    }

    pub(super) fn number(value: BigRational) -> Option<Self> {
        let sum = Sum::constant(BigRational::zero()).plus(&Sum::constant(value))?;
        Some(Self::whole(sum))
    }

    pub(super) fn letter(letter: char) -> Self {
        let monomial = Monomial { radicand: 1, letters: BTreeMap::from([(letter, 1)]) };
        Self::whole(Sum::term(monomial, BigRational::one()))
    }

    pub(super) fn plus(&self, other: &Self) -> Option<Self> {
        if self.bottom == other.bottom {
            return Some(Self { top: self.top.plus(&other.top)?, bottom: self.bottom.clone() });
        }
        let left = self.top.times(&other.bottom)?;
        let right = other.top.times(&self.bottom)?;
        Some(Self { top: left.plus(&right)?, bottom: self.bottom.times(&other.bottom)? })
    }

    pub(super) fn negated(&self) -> Self {
        let top = self.top.0.iter().map(|(monomial, factor)| (monomial.clone(), -factor));
        Self { top: Sum(top.collect()), bottom: self.bottom.clone() }
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        let top = self.top.times(&other.top)?;
        Some(Self { top, bottom: self.bottom.times(&other.bottom)? })
    }

    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        if other.top.0.is_empty() {
            return None;
        }
        let quotient =
            Self { top: self.top.times(&other.bottom)?, bottom: self.bottom.times(&other.top)? };
        // a rational divisor goes into the sum above it
        match quotient.bottom.rational() {
            Some(divisor) => {
                Some(Self::whole(quotient.top.times(&Sum::constant(divisor.recip()))?))
            }
            None => Some(quotient),
        }
    }

    /// The power with a whole exponent, or a half for a square root.
    pub(super) fn to_the(&self, exponent: &Self) -> Option<Self> {
        let exponent = exponent.rational()?;
        if exponent == BigRational::new(1.into(), 2.into()) {
            return self.root(2);
        }
        let times = exponent.to_integer().to_i32().filter(|_| exponent.is_integer())?;
        let mut left = times.unsigned_abs();
        if left > MAX_EXPONENT || (self.top.0.is_empty() && times <= 0) {
            return None;
        }
        let one = Self::whole(Sum::constant(BigRational::one()));
        let (mut power, mut square) = (one.clone(), self.clone());
        while left > 0 {
            if left % 2 == 1 {
                power = power.times(&square)?;
            }
            left /= 2;
            if left > 0 {
                square = square.times(&square)?;
            }
        }
        if times < 0 { one.over(&power) } else { Some(power) }
    }

    /// The `degree`-th root of a rational that is not negative: any square root, and others where
    /// they are rational.
    pub(super) fn root(&self, degree: u32) -> Option<Self> {
        let value = self.rational().filter(|value| !value.is_negative() && degree > 0)?;
        let exact = |number: &BigInt| {
            let root = number.nth_root(degree);
            (root.pow(degree) == *number).then_some(root)
        };
        if degree > MAX_EXPONENT {
            return None;
        }
        if let (Some(top), Some(bottom)) = (exact(value.numer()), exact(value.denom())) {
            return Self::number(BigRational::new(top, bottom));
        }
        // √(p/q) = √(pq)/q
        let radicand = (value.numer() * value.denom()).to_u64().filter(|_| degree == 2)?;
        let (square, radicand) = without_squares(radicand)?;
        let factor = BigRational::new(square.into(), value.denom().clone());
        Some(Self::whole(Sum::term(Monomial { radicand, letters: BTreeMap::new() }, factor)))
    }

    pub(super) fn rational(&self) -> Option<BigRational> {
        let bottom = self.bottom.rational()?;
        self.top.rational().map(|top| top / bottom)
    }

    /// Whether both are the same rational, sum or quotient; a rational and an irrational constant
    /// are if they differ by less than a relative 10⁻⁶.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self.rational(), other.rational()) {
            (Some(a), Some(b)) => a == b,
            (None, None) => {
                let crossed =
                    || Some(self.top.times(&other.bottom)? == other.top.times(&self.bottom)?);
                (self.top == other.top && self.bottom == other.bottom) || crossed() == Some(true)
            }
            _ => {
                let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * a.abs().max(b.abs());
                self.approximate().zip(other.approximate()).is_some_and(|(a, b)| close(a, b))
            }
        }
    }

    fn approximate(&self) -> Option<f64> {
        let quotient = self.top.approximate()? / self.bottom.approximate()?;
        quotient.is_finite().then_some(quotient)
    }
}

/// `number` as `square² · rest`.
fn without_squares(number: u64) -> Option<(u64, u64)> {
    if number > MAX_RADICAND {
        return None;
    }
    let (mut square, mut rest, mut factor) = (1, number, 2);
    while factor * factor <= rest {
        while rest % (factor * factor) == 0 {
            rest /= factor * factor;
            square *= factor;
        }
        factor += 1;
    }
    Some((square, rest))
}
