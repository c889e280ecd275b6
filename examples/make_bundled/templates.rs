//! The problems: what is asked, in several wordings, and how it is worked out, in several wordings.
//!
//! `{N}` and `{M}` are two people, `{he}` and `{He}` stand for the first; `{things}` and
//! `{others}` are two kinds of object, `{thing}` and `{other}` one of each; `{a}` … `{d}` are drawn
//! from `ranges`; `[a + b = x]` is worked out, written in digits, and binds `x`. The value of the
//! last one is the answer.

/// A kind of problem.
pub struct Template {
    pub name: &'static str,
    /// Smallest and largest value of `a`, `b`, …
    pub ranges: &'static [(i64, i64)],
    /// Wordings; the last sentence is the question.
    pub questions: &'static [&'static str],
    /// Wordings of the worked solution, one step a line; the first is the one that is taught.
    pub solutions: &'static [&'static str],
}

pub const PEOPLE: [(&str, bool); 24] = [
    ("Tom", true),
    ("Mia", false),
    ("Ben", true),
    ("Anna", false),
    ("Sam", true),
    ("Lily", false),
    ("Jack", true),
    ("Emma", false),
    ("Leo", true),
    ("Nora", false),
    ("Max", true),
    ("Ella", false),
    ("Omar", true),
    ("Zoe", false),
    ("Ravi", true),
    ("Aisha", false),
    ("Luis", true),
    ("Mei", false),
    ("Ivan", true),
    ("Sara", false),
    ("Kofi", true),
    ("Rosa", false),
    ("Finn", true),
    ("Julia", false),
];

pub const THINGS: [(&str, &str); 20] = [
    ("apple", "apples"),
    ("marble", "marbles"),
    ("sticker", "stickers"),
    ("book", "books"),
    ("card", "cards"),
    ("coin", "coins"),
    ("shell", "shells"),
    ("pen", "pens"),
    ("stamp", "stamps"),
    ("bead", "beads"),
    ("cookie", "cookies"),
    ("pear", "pears"),
    ("egg", "eggs"),
    ("button", "buttons"),
    ("flower", "flowers"),
    ("balloon", "balloons"),
    ("candle", "candles"),
    ("ribbon", "ribbons"),
    ("toy", "toys"),
    ("nut", "nuts"),
];

const SMALL: (i64, i64) = (2, 9);
const ANY: (i64, i64) = (2, 90);
const HALF: (i64, i64) = (2, 45);

pub const TEMPLATES: [Template; 24] = [
    Template {
        name: "more",
        ranges: &[ANY, ANY],
        questions: &[
            "{N} has {a} {things}. {He} gets {b} more. How many {things} does {N} have now?",
            "{N} had {a} {things} and then found {b} more {things}. How many does {he} have?",
            "There are {a} {things} on the table. {N} puts {b} more there. How many {things} are on \
             the table?",
        ],
        solutions: &[
            "There are [a + b = x] {things}.",
            "Add them: [a + b = x].",
            "Now there are [a + b = x] {things} in all.",
        ],
    },
    Template {
        name: "fewer",
        ranges: &[ANY, ANY],
        questions: &[
            "{N} has {a} {things}. {He} gives {b} to {M}. How many {things} does {N} have left?",
            "{N} had {a} {things} but lost {b} of them. How many {things} are left?",
            "A shop has {a} {things}. {N} buys {b} of them. How many {things} does the shop have now?",
        ],
        solutions: &[
            "There are [a - b = x] {things} left.",
            "Take them away: [a - b = x].",
            "That leaves [a - b = x] {things}.",
        ],
    },
    Template {
        name: "boxes",
        ranges: &[(2, 12), (2, 12)],
        questions: &[
            "There are {a} boxes with {b} {things} in each box. How many {things} are there?",
            "{N} fills {a} bags and puts {b} {things} in each bag. How many {things} does {he} use?",
            "{N} has {a} rows of {b} {things}. How many {things} does {N} have?",
        ],
        solutions: &[
            "In all there are [a * b = x] {things}.",
            "Multiply: [a * b = x].",
            "That is [a * b = x] {things}.",
        ],
    },
    Template {
        name: "share",
        ranges: &[(4, 99), SMALL],
        questions: &[
            "{N} shares {a} {things} equally among {b} friends. How many {things} does each friend \
             get?",
            "{N} puts {a} {things} into {b} equal piles. How many {things} are in each pile?",
            "{a} {things} are packed in {b} boxes, the same number in each. How many {things} are in \
             a box?",
        ],
        solutions: &[
            "Each gets [a / b = x] {things}.",
            "Divide: [a / b = x].",
            "That is [a / b = x] each.",
        ],
    },
    Template {
        name: "compare",
        ranges: &[ANY, ANY],
        questions: &[
            "{N} has {a} {things} and {M} has {b} {things}. How many more {things} does {N} have than \
             {M}?",
            "{M} found {b} {things}. {N} found {a} {things}. How many more did {N} find than {M}?",
        ],
        solutions: &["{N} has [a - b = x] more.", "The difference is [a - b = x]."],
    },
    Template {
        name: "older",
        ranges: &[(3, 60), (2, 35)],
        questions: &[
            "{N} is {a} years old. How old will {he} be in {b} years?",
            "{N} is {a} years old and {M} is {b} years older. How old is {M}?",
        ],
        solutions: &["The age is [a + b = x] years.", "Add the years: [a + b = x]."],
    },
    Template {
        name: "price",
        ranges: &[(2, 12), (2, 12)],
        questions: &[
            "One {thing} costs {a} dollars. How much do {b} {things} cost?",
            "{N} buys {b} {things} for {a} dollars each. How many dollars does {he} pay?",
        ],
        solutions: &[
            "They cost [b * a = x] dollars.",
            "Multiply: [b * a = x].",
            "{b} {things} cost [b * a = x] dollars.",
        ],
    },
    Template {
        name: "get-give",
        ranges: &[HALF, HALF, HALF],
        questions: &[
            "{N} has {a} {things}. {He} gets {b} more and then gives {c} to {M}. How many {things} \
             does {N} have now?",
            "There are {a} {things} in a box. {N} puts in {b} more, and {M} takes out {c}. How many \
             {things} are in the box?",
        ],
        solutions: &[
            "With the new ones there are [a + b = x] {things}.\nAfter that there are [x - c = y] \
             {things}.",
            "First add: [a + b = x].\nThen take away: [x - c = y].",
            "At first [a + b = x] {things}.\nThen [x - c = y] {things} are left.",
        ],
    },
    Template {
        name: "boxes-more",
        ranges: &[(2, 12), (2, 12), HALF],
        questions: &[
            "{N} has {a} boxes with {b} {things} in each and {c} more {things} on the table. How many \
             {things} does {N} have?",
            "There are {a} bags of {b} {things}. {N} brings {c} more {things}. How many {things} are \
             there now?",
        ],
        solutions: &[
            "The boxes hold [a * b = x] {things}.\nIn all there are [x + c = y] {things}.",
            "First multiply: [a * b = x].\nThen add: [x + c = y].",
            "That is [a * b = x] {things}.\nWith the others [x + c = y] {things}.",
        ],
    },
    Template {
        name: "together",
        ranges: &[HALF, HALF],
        questions: &[
            "{N} has {a} {things}. {M} has {b} more {things} than {N}. How many {things} do they have \
             together?",
            "{N} made {a} {things}, and {M} made {b} more than {N}. How many {things} did they make in \
             all?",
        ],
        solutions: &[
            "{M} has [a + b = x] {things}.\nTogether they have [a + x = y] {things}.",
            "First add: [a + b = x].\nThen add both: [a + x = y].",
        ],
    },
    Template {
        name: "change",
        ranges: &[(10, 99), SMALL, SMALL],
        questions: &[
            "{N} has {a} dollars. {He} buys {b} {things} for {c} dollars each. How many dollars are \
             left?",
            "One {thing} costs {c} dollars. {N} buys {b} {things} and pays with {a} dollars. How many \
             dollars does {he} get back?",
        ],
        solutions: &[
            "The {things} cost [b * c = x] dollars.\nThere are [a - x = y] dollars left.",
            "First multiply: [b * c = x].\nThen take away: [a - x = y].",
            "{b} {things} cost [b * c = x] dollars.\nThat leaves [a - x = y] dollars.",
        ],
    },
    Template {
        name: "lose-pack",
        ranges: &[ANY, HALF, SMALL],
        questions: &[
            "{N} has {a} {things}. {b} of them break, and {he} packs the others in bags of {c}. How \
             many bags does {N} fill?",
            "{N} picks {a} {things} and eats {b}. {He} shares the others equally among {c} friends. How \
             many does each friend get?",
        ],
        solutions: &[
            "There are [a - b = x] {things} left.\nThat makes [x / c = y].",
            "First take away: [a - b = x].\nThen divide: [x / c = y].",
        ],
    },
    Template {
        name: "times-more",
        ranges: &[(2, 12), SMALL],
        questions: &[
            "{N} has {a} {things}. {M} has {b} times as many. How many more {things} does {M} have than \
             {N}?",
            "{M} has {b} times as many {things} as {N}. {N} has {a}. How many more does {M} have?",
        ],
        solutions: &[
            "{M} has [b * a = x] {things}.\n{M} has [x - a = y] more.",
            "First multiply: [b * a = x].\nThen take away: [x - a = y].",
        ],
    },
    Template {
        name: "bake-share",
        ranges: &[HALF, HALF, SMALL],
        questions: &[
            "{N} makes {a} {things} in the morning and {b} in the evening. {He} shares them equally \
             among {c} friends. How many does each friend get?",
            "{N} has {a} {things} and {M} has {b}. They put them together in {c} equal piles. How many \
             {things} are in each pile?",
        ],
        solutions: &[
            "There are [a + b = x] {things}.\nEach gets [x / c = y] {things}.",
            "First add: [a + b = x].\nThen divide: [x / c = y].",
        ],
    },
    Template {
        name: "two-prices",
        ranges: &[(2, 50), SMALL, SMALL],
        questions: &[
            "One {thing} costs {b} dollars and one {other} costs {a} dollars. How much do {c} {things} \
             and one {other} cost?",
            "{N} buys {c} {things} for {b} dollars each and one {other} for {a} dollars. How many \
             dollars does {he} pay?",
        ],
        solutions: &[
            "The {things} cost [c * b = x] dollars.\nIn all it is [x + a = y] dollars.",
            "First multiply: [c * b = x].\nThen add: [x + a = y].",
        ],
    },
    Template {
        name: "bus",
        ranges: &[(10, 80), HALF, HALF],
        questions: &[
            "A bus has {a} people in it. {b} get off and {c} get on. How many people are in the bus \
             now?",
            "There are {a} birds in a tree. {b} fly away and {c} come back. How many birds are in the \
             tree?",
        ],
        solutions: &[
            "After the first there are [a - b = x].\nAfter that there are [x + c = y].",
            "First take away: [a - b = x].\nThen add: [x + c = y].",
        ],
    },
    Template {
        name: "pages",
        ranges: &[(20, 99), SMALL, SMALL],
        questions: &[
            "A book has {a} pages. {N} reads {b} pages a day for {c} days. How many pages are left?",
            "{N} must paint {a} {things}. {He} paints {b} a day for {c} days. How many {things} are \
             left?",
        ],
        solutions: &[
            "That is [b * c = x] in {c} days.\nThere are [a - x = y] left.",
            "First multiply: [b * c = x].\nThen take away: [a - x = y].",
        ],
    },
    Template {
        name: "save-spend",
        ranges: &[(2, 12), (2, 12), HALF],
        questions: &[
            "{N} saves {a} dollars a week for {b} weeks. Then {he} spends {c} dollars. How many dollars \
             does {N} have left?",
            "{N} works {b} hours and gets {a} dollars an hour. {He} pays {c} dollars for one {thing}. How \
             many dollars are left?",
        ],
        solutions: &[
            "{N} gets [a * b = x] dollars.\nThere are [x - c = y] dollars left.",
            "First multiply: [a * b = x].\nThen take away: [x - c = y].",
        ],
    },
    Template {
        name: "two-kinds",
        ranges: &[SMALL, SMALL, SMALL, SMALL],
        questions: &[
            "{N} has {a} boxes of {b} {things} and {c} boxes of {d} {others}. How many {things} and \
             {others} does {N} have in all?",
            "{N} buys {a} {things} for {b} dollars each and {c} {others} for {d} dollars each. How many \
             dollars does {he} pay?",
        ],
        solutions: &[
            "The {things} make [a * b = x].\nThe {others} make [c * d = y].\nIn all it is [x + y = z].",
            "First multiply: [a * b = x].\nThen multiply: [c * d = y].\nThen add: [x + y = z].",
        ],
    },
    Template {
        name: "shop-change",
        ranges: &[SMALL, SMALL, (2, 30), (30, 99)],
        questions: &[
            "{N} buys {a} {things} for {b} dollars each and one {other} for {c} dollars. {He} pays with \
             {d} dollars. How many dollars does {he} get back?",
            "{N} has {d} dollars. {He} buys {a} {things} for {b} dollars each and one {other} for {c} \
             dollars. How many dollars are left?",
        ],
        solutions: &[
            "The {things} cost [a * b = x] dollars.\nIn all it is [x + c = y] dollars.\nThere are \
             [d - y = z] dollars left.",
            "First multiply: [a * b = x].\nThen add: [x + c = y].\nThen take away: [d - y = z].",
        ],
    },
    Template {
        name: "pool-share-give",
        ranges: &[HALF, HALF, SMALL, SMALL],
        questions: &[
            "{N} has {a} {things} and {M} has {b}. They share all of them equally among {c} friends. One \
             friend gives {d} away. How many {things} does that friend have left?",
            "{N} picks {a} {things} and {M} picks {b}. They put them in {c} equal bags. {N} takes {d} out \
             of one bag. How many {things} are left in that bag?",
        ],
        solutions: &[
            "There are [a + b = x] {things}.\nEach gets [x / c = y] {things}.\nThere are [y - d = z] \
             {things} left.",
            "First add: [a + b = x].\nThen divide: [x / c = y].\nThen take away: [y - d = z].",
        ],
    },
    Template {
        name: "wages",
        ranges: &[SMALL, SMALL, (2, 9), HALF],
        questions: &[
            "{N} gets {a} dollars an hour. {He} works {b} hours on Monday and {c} hours on Friday, and \
             spends {d} dollars. How many dollars are left?",
            "{N} works {b} hours in the morning and {c} hours in the evening for {a} dollars an hour. \
             Then {he} spends {d} dollars. How many dollars are left?",
        ],
        solutions: &[
            "{N} works [b + c = x] hours.\n{N} gets [a * x = y] dollars.\nThere are [y - d = z] dollars \
             left.",
            "First add: [b + c = x].\nThen multiply: [a * x = y].\nThen take away: [y - d = z].",
        ],
    },
    Template {
        name: "rows-share",
        ranges: &[(2, 12), (2, 12), HALF, SMALL],
        questions: &[
            "{N} has {a} rows of {b} {things}. {He} takes away {c} of them and puts the others in {d} \
             equal piles. How many {things} are in each pile?",
            "{N} has {a} bags of {b} {things}. {He} gives {c} to {M} and shares the others equally among \
             {d} friends. How many does each friend get?",
        ],
        solutions: &[
            "There are [a * b = x] {things}.\nThen [x - c = y] {things} are left.\nEach gets [y / d = z] \
             {things}.",
            "First multiply: [a * b = x].\nThen take away: [x - c = y].\nThen divide: [y / d = z].",
        ],
    },
    Template {
        name: "three-people",
        ranges: &[(2, 30), (2, 30), (2, 30)],
        questions: &[
            "{N} has {a} {things}. {M} has {b} more than {N}, and their friend has {c}. How many {things} \
             do the three have together?",
            "There are {a} red {things} and {b} more blue {things} than red ones. {N} brings {c} green \
             {things}. How many {things} are there?",
        ],
        solutions: &[
            "First there are [a + b = x] {things}.\nThat makes [a + x = y] {things}.\nIn all there are \
             [y + c = z] {things}.",
            "First add: [a + b = x].\nThen add both: [a + x = y].\nThen add: [y + c = z].",
        ],
    },
];
