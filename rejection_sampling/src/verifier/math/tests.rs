use proptest::prelude::*;

use super::{MAX_CHARS, equivalent};

#[test]
fn answers_of_the_same_value_are_equivalent() {
    for (a, b) in [
        // numbers
        ("5", "5"),
        ("5.0", "5"),
        ("007", "7"),
        ("-3", "−3"),
        ("+3", "3"),
        ("1,234,567.50", "1234567.5"),
        ("1{,}234", "1234"),
        (r"1,\!234", "1234"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        (r"1.5 \times 10^{3}", "1500"),
        ("6.02*10^23", "602000000000000000000000"),
        ("2^{10}", "1024"),
        ("2^-3", "1/8"),
        ("2^{100}", "1267650600228229401496703205376"),
        // fractions
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac12", "1/2"),
        (r"\tfrac{3}4", "0.75"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"\frac{1}{-2}", "-0.5"),
        ("2/4", "1/2"),
        ("6/3", "2"),
        ("1 1/2", "3/2"),
        (r"1\frac{1}{2}", "1.5"),
        (r"2 \frac34", "11/4"),
        (r"-1\frac12", "-1.5"),
        (r"\frac{\frac{1}{2}}{3}", "1/6"),
        ("(1/2)", "0.5"),
        // percent, money, units
        ("50%", "50"),
        (r"50\%", "0.5"),
        ("50 percent", "50%"),
        ("$5", "5"),
        (r"\$5.00", "5"),
        ("5 dollars", "$5"),
        ("€1,000", "1000"),
        ("1.5 million", "1,500,000"),
        ("2 hundred dollars", "200"),
        (r"3\text{ thousand}", "3000"),
        ("5 Million", "5000000"),
        ("9 (apples)", "9"),
        ("9", r"9 \text{ (red apples)}"),
        ("50% (of all)", "0.5"),
        (r"-\frac12 \text{ billion people}", "-500000000"),
        ("12 cm", "12"),
        ("12cm", "12"),
        ("12 cm^2", "12"),
        (r"12\text{ cm}^2", "12"),
        (r"12\,\mathrm{m}", "12"),
        (r"12~\text{km/h}", "12 km/h"),
        ("12 square feet", "12"),
        ("60 miles per hour", "60"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90°"),
        ("90 degrees", "90"),
        ("25°C", "25"),
        (r"5 \text{ apples}", "5"),
        // roots and π
        (r"\sqrt{4}", "2"),
        (r"\sqrt{12}", r"2\sqrt{3}"),
        (r"2\sqrt3", r"\sqrt{3}\cdot 2"),
        ("2√3", r"2\sqrt{3}"),
        ("sqrt(8)", r"2\sqrt2"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\sqrt{\frac{1}{2}}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt[3]{27}", "3"),
        ("2^{1/2}", r"\sqrt{2}"),
        (r"\sqrt{2}\sqrt{6}", r"2\sqrt{3}"),
        (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
        (r"\frac{1+\sqrt{5}}{2}", r"\frac12+\frac{\sqrt5}{2}"),
        ("1.4142136", r"\sqrt{2}"),
        (r"3\pi", "3 pi"),
        (r"3\pi", "3π"),
        (r"\frac{\pi}{3}", r"\frac13\pi"),
        ("3.1415927", r"\pi"),
        // letters
        ("2x+1", "1+2x"),
        ("(x+1)^2", "x^2+2x+1"),
        ("ab+1", "1+ba"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        ("x^{-1}", "1/x"),
        ("x = 5", "5"),
        ("y=2x+3", "3+2x"),
        ("f(x) = x^2", "x^2"),
        // tuples, intervals, sets, lists
        ("(1, 2)", "(1,2)"),
        (r"\left(\frac12, 3\right)", "(0.5, 3)"),
        ("(3, 4, 5)", "(3,4,5)"),
        ("(1,234)", "(1, 234)"),
        ("[0, 1)", "[0,1.0)"),
        (r"(-\infty, 2]", "(-∞,2]"),
        (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty) \cup (-\infty,0)"),
        (r"x \in [1, 2]", "[1,2]"),
        (r"\{1, 2\}", "{2, 1}"),
        ("{5}", "5"),
        ("1, 2", "2, 1"),
        ("1,2,3", "{3,2,1}"),
        ("1 or 2", "2, 1"),
        ("3, 5, and 7", "3, 5, 7"),
        ("3, 5, or 7", r"\{3, 5, 7\}"),
        (r"1 \text{ and } 2", "1, 2"),
        ("((1,2),(3,4))", "((1, 2), (3, 4))"),
        (r"x \leq 5", "x ≤ 5"),
        (r"\pm 2", "±2"),
        (r"\varnothing", r"\emptyset"),
        // text
        (r"\text{even}", "Even"),
        (r"\textbf{(B)}", "B"),
        (r"\sin x", "sin x"),
        (r"\operatorname{ln}(6)", r"\ln(6)"),
        ("(B)", "b"),
        ("**yes**", "yes."),
        ("\"no\"", "No"),
        ("Monday, Tuesday", "tuesday and monday"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("10:30", "10:30"),
        ("$x$", "x"),
        (r"\(5\)", "5"),
        (r"\[ 5 \]", "5"),
        ("`5`", "5"),
    ] {
        assert!(equivalent(a, b), "{a:?} {b:?}");
        assert!(equivalent(b, a), "{b:?} {a:?}");
    }
}

#[test]
fn answers_of_different_value_are_not_equivalent() {
    for (a, b) in [
        ("5", "6"),
        ("5", "-5"),
        ("0.333", "1/3"),
        ("0.33333333333333333333", r"\frac13"),
        ("1234", "1.234"),
        ("1,23", "123"),
        ("10000000000000000000000001", "10000000000000000000000000"),
        ("1/2", "2"),
        ("1 1/2", "11/2"),
        ("1/0", "1/0 + 1"),
        (r"\frac{1}{0}", "0"),
        ("50%", "5"),
        ("50%", "0.5%"),
        ("5%", "0.5"),
        ("1.41", r"\sqrt{2}"),
        ("3.14", r"\pi"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        (r"2\sqrt{3}", r"3\sqrt{2}"),
        (r"\sqrt{-4}", "2"),
        ("x", "y"),
        ("2x", "x^2"),
        ("2x", "2"),
        ("x+1", "x-1"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2]", "(1, 2)"),
        ("(1, 2)", "1, 2"),
        ("{1, 2}", "{1, 2, 3}"),
        ("{1, 1, 2}", "{1, 2, 2}"),
        ("1 or 2", "1"),
        ("1,234", "1, 234"),
        ("even", "odd"),
        ("even", ""),
        ("", ""),
        ("", "0"),
        (" ", "."),
        ("5 apples", "apples"),
        ("5 million", "5"),
        (r"5\text{ million}", "5"),
        (r"x \le 5", r"x \ge 5"),
        (r"\pm 2", "2"),
        ("five", "5"),
        ("A", "B"),
        (r"\text{}", "0"),
        ("2 3", "23"),
        ("x = y = 2", "2"),
        (r"3\mathbf{i}+4\mathbf{j}", r"4\mathbf{i}+3\mathbf{j}"),
        (r"2\mathit{x}", "2"),
        ("sin(2x)", "2sin(x)"),
        (r"\sin(2x)", r"2\sin(x)"),
        ("ln(6)", "2ln(3)"),
        (r"\mathrm{ln}(6)", r"2\mathrm{ln}(3)"),
        (r"\operatorname{sin}(2x)", r"2\operatorname{sin}(x)"),
        ("ln6", "6ln"),
        ("9 (million)", "9"),
        ("9 (x)", "9"),
        ("9 (10)", "9"),
        (", and 7", "7, 7"),
        ("2^{999999999999}", "2"),
        ("0^0", "1"),
        ("0^{-1}", "0"),
    ] {
        assert!(!equivalent(a, b), "{a:?} {b:?}");
        assert!(!equivalent(b, a), "{b:?} {a:?}");
    }
}

#[test]
fn hostile_answers_end_soon() {
    let start = std::time::Instant::now();
    let fits = |text: &str, times: usize| text.repeat(times.min(MAX_CHARS / text.len()));
    let powers = fits("(a+b)^63(a-b)", 99);
    for answer in [
        fits("(", 999),
        fits("{", 999),
        fits("√", 999),
        fits(r"\frac{", 999),
        fits(r"\text{", 999),
        fits("-", 999),
        fits("2^", 999),
        fits("(a+b+c)", 999),
        fits("(a+√2+√3+√5+√7)", 999),
        fits("(√9999999967+1)", 999),
        fits("9^999*", 999) + "1",
        fits("1/9^99+", 999) + "1",
        fits("1e400*", 999) + "1",
        "1e999999999999999".into(),
        "9".repeat(100_000),
        "9,".repeat(100_000),
        "((a+b+c)^20+(d+f)^30)^9".into(),
        "x^{1999}".into(),
        format!("({powers})/({powers})"),
        "\\".repeat(50),
        "\u{0}\u{301}\u{fffd}".into(),
    ] {
        equivalent(&answer, "1");
        equivalent(&answer, &format!("{answer} "));
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn long_numbers_are_compared_in_full() {
    let long = "9".repeat(4000);
    assert!(equivalent(&long, &format!("{long}.0")));
    assert!(!equivalent(&long, &format!("{long}1")));
}

/// Pieces of answers, so that what is put together is often nearly well formed.
const PIECES: &str = r"(\\frac|\\sqrt|\\text|\\left|\\right|\\cup|\\pi|\\infty|\\%|\\|\{|\}|\(|\)|\[|\]|[0-9]{1,3}|[-+*/^_=,;.%$ ]| or |[a-zA-Z]|√|π|°|é|中)";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_two_texts_are_compared_alike_in_both_orders(
        a in prop::collection::vec(PIECES, 0..24),
        b in prop::collection::vec(PIECES, 0..24),
    ) {
        let (a, b) = (a.concat(), b.concat());
        prop_assert_eq!(equivalent(&a, &b), equivalent(&b, &a));
    }

    #[test]
    fn an_answer_that_says_something_is_its_own_equal(a in prop::collection::vec(PIECES, 1..24)) {
        let a = a.concat();
        let says = super::latex::plain(&a);
        if says.contains(|c: char| c.is_alphanumeric()) {
            prop_assert!(equivalent(&a, &a), "{a:?} is {:?}", super::value::read(&says));
        }
    }

    #[test]
    fn no_text_panics(a in "\\PC{0,80}", b in "\\PC{0,80}") {
        equivalent(&a, &b);
    }

    #[test]
    fn every_fraction_is_its_reduced_form(a in -999i64..999, b in 1i64..999, by in 1i64..50) {
        let scaled = format!(r"\frac{{{}}}{{{}}}", a * by, b * by);
        let (reduced, other) = (format!("{a}/{b}"), format!("{}/{b}", a + 1));
        prop_assert!(equivalent(&scaled, &reduced));
        prop_assert!(!equivalent(&scaled, &other));
    }

    #[test]
    fn every_root_is_its_lowest_form(square in 1u64..100, rest in 1u64..1000) {
        let whole = format!(r"\sqrt{{{}}}", square * square * rest);
        let lowest = format!(r"{square}\sqrt{{{rest}}}");
        prop_assert!(equivalent(&whole, &lowest), "{whole} {lowest}");
    }
}
