//! The text of a page: headings, paragraphs and lists, in the manner of Markdown.
//!
//! Tokens are enough for that, in time and memory that grow with the page alone; a tree of nested
//! elements would be neither bounded nor safe to take down.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, EndTag, StartTag, Tag, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};

/// Elements that say nothing of the document.
const SKIPPED: [&str; 10] =
    ["button", "iframe", "math", "nav", "script", "select", "style", "svg", "template", "title"];
const BLOCKS: [&str; 30] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "details",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "ul",
];
const LINES: [&str; 5] = ["br", "dd", "dt", "li", "tr"];

/// The text of `page`, well-formed or not.
pub(super) fn text(page: &str) -> String {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(page));
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
    // No script is run, so that it stops at the end only.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner().text
}

#[derive(Default)]
struct Sink(RefCell<Written>);

#[derive(Default)]
struct Written {
    text: String,
    /// Line ends that are due before the next word.
    breaks: usize,
    has_space: bool,
    /// The skipped element that is open, and how many of its name.
    skipped: Option<(String, usize)>,
    preformatted: bool,
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        let mut written = self.0.borrow_mut();
        match token {
            Token::CharacterTokens(text) => written.say(&text),
            Token::TagToken(tag) => return written.tag(&tag),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Written {
    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name: &str = &tag.name;
        match (tag.kind, &mut self.skipped) {
            (StartTag, Some((open, depth))) if open == name && !tag.self_closing => *depth += 1,
            (EndTag, Some((open, depth))) if open == name => {
                *depth -= 1;
                if *depth == 0 {
                    self.skipped = None;
                }
            }
            (_, Some(_)) => {}
            (StartTag, None) if SKIPPED.contains(&name) && !tag.self_closing => {
                self.skipped = Some((name.into(), 1));
            }
            (kind, None) => self.mark(name, kind == StartTag),
        }
        match (tag.kind, name) {
            (StartTag, "script") => TokenSinkResult::RawData(RawKind::ScriptData),
            (StartTag, "style" | "iframe" | "xmp" | "noembed" | "noframes") => {
                TokenSinkResult::RawData(RawKind::Rawtext)
            }
            (StartTag, "title" | "textarea") => TokenSinkResult::RawData(RawKind::Rcdata),
            _ => TokenSinkResult::Continue,
        }
    }

    fn mark(&mut self, name: &str, is_start: bool) {
        if LINES.contains(&name) {
            self.breaks = self.breaks.max(1);
        } else if BLOCKS.contains(&name) {
            self.breaks = self.breaks.max(2);
        }
        match (name, is_start) {
            ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", true) => {
                let level = usize::from(name.as_bytes()[1] - b'0');
                self.word(&"#".repeat(level));
                self.has_space = true;
            }
            ("li", true) => {
                self.word("-");
                self.has_space = true;
            }
            ("td" | "th", _) => self.has_space = true,
            ("pre", true) => {
                self.word("```\n");
                self.preformatted = true;
            }
            ("pre", false) if self.preformatted => {
                self.preformatted = false;
                self.breaks = 1;
                self.word("```");
                self.breaks = 2;
            }
            _ => {}
        }
    }

    fn say(&mut self, text: &str) {
        if self.skipped.is_some() {
            return;
        }
        if self.preformatted {
            self.text.push_str(text);
            return;
        }
        if text.starts_with(char::is_whitespace) {
            self.has_space = true;
        }
        for word in text.split_whitespace() {
            self.word(word);
            self.has_space = true;
        }
        self.has_space = text.ends_with(char::is_whitespace);
    }

    fn word(&mut self, word: &str) {
        let breaks = std::mem::take(&mut self.breaks);
        let has_space = std::mem::take(&mut self.has_space);
        match (self.text.is_empty(), breaks) {
            (true, _) => {}
            (false, 0) if has_space => self.text.push(' '),
            (false, breaks) => (0..breaks).for_each(|_| self.text.push('\n')),
        }
        self.text.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn headings_paragraphs_and_lists_stay_apart() {
        let page = "<!doctype html><html><head><title>No</title><style>p { a: b }</style></head><body>\
                    <nav>menu</nav><h2>On <em>bees</em></h2>They&nbsp;fly\n &amp; dance.<p>Fast.\
                    <ul><li>one<li>two</ul><script>if (a < b) { \"<p>\" }</script>\
                    <table><tr><td>1</td><td>2</td></tr></table><pre>a\n  b</pre>end";
        let expected = "## On bees\n\nThey fly & dance.\n\nFast.\n\n- one\n- two\n\n1 2\n\n```\na\n  b\n```\n\nend";
        assert_eq!(text(page), expected);
    }

    #[test]
    fn any_bytes_are_a_page() {
        assert_eq!(text("<head><p <b>a</ p></nav> b <unclosed"), "a b");
        assert_eq!(text("a < b & c &#xD800; <![CDATA[x]]>"), "a < b & c \u{fffd}");
        assert_eq!(text("<svg><svg></svg>no</svg>yes<svg/>!<script>never closed"), "yes!");
        let deep = "<div>".repeat(300_000);
        assert_eq!(text(&format!("{deep}deep")), "deep");
    }
}
