//! Secrets and personal data in texts: found by their form, checked where there is a check, and
//! masked. Names and postal addresses have no form that could be found so.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::Serialize;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A private key in PEM.
    PrivateKey,
    /// A key or token of a known provider, by its prefix.
    ApiKey,
    /// A JSON Web Token.
    WebToken,
    /// Something assigned to a name like `api_key` or `password`.
    Credential,
    /// An e-mail address outside of the domains reserved for examples (RFC 2606).
    Email,
    /// A telephone number.
    Phone,
    /// A bank account whose check digits are right (ISO 13616).
    Iban,
    /// A payment card whose check digit is right (Luhn).
    Card,
    /// A public IP address.
    IpAddress,
}

impl Kind {
    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrivateKey => "private key",
            Self::ApiKey => "API key",
            Self::WebToken => "web token",
            Self::Credential => "credential",
            Self::Email => "e-mail address",
            Self::Phone => "phone number",
            Self::Iban => "IBAN",
            Self::Card => "payment card",
            Self::IpAddress => "IP address",
        }
    }
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is there.
    pub kind: Kind,
    /// Where, in bytes.
    pub at: Range<usize>,
}

/// Kinds with their forms; the earlier goes first where two overlap.
const FORMS: [(Kind, &str); 10] = [
    (Kind::PrivateKey, r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----[A-Za-z0-9+/=\s]*"),
    (
        Kind::ApiKey,
        r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}|sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|[sr]k_live_[0-9A-Za-z]{20,}|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})",
    ),
    (Kind::WebToken, r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    (
        Kind::Credential,
        r#"(?i)\b(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|passw(?:or)?d)["']?\s*[:=]\s*["']?([A-Za-z0-9/+_.\-]{16,})"#,
    ),
    (Kind::Email, r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
    (Kind::Iban, r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    (Kind::Card, r"\b[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}\b"),
    (Kind::IpAddress, r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b"),
    (Kind::IpAddress, r"(?i)\b[0-9a-f]{1,4}(?::{1,2}[0-9a-f]{1,4}){2,7}\b"),
    (
        Kind::Phone,
        r"\+[0-9]{1,3}(?:[ .()/-]{0,2}[0-9]){7,12}\b|\(?\b[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}\b",
    ),
];

static COMPILED: LazyLock<Vec<(Kind, Regex)>> = LazyLock::new(|| {
    let compiled = |(kind, form): (Kind, &str)| Some((kind, Regex::new(form).ok()?));
    FORMS.into_iter().filter_map(compiled).collect()
});

/// Everything that is found in a text, in its order; places do not overlap.
pub fn find(text: &str) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for (kind, form) in COMPILED.iter() {
        for groups in form.captures_iter(text) {
            let Some(place) = groups.get(1).or_else(|| groups.get(0)) else { continue };
            let at = place.range();
            let is_free =
                found.iter().all(|other| other.at.end <= at.start || at.end <= other.at.start);
            if is_free && holds(*kind, text, &at) {
                found.push(Finding { kind: *kind, at });
            }
        }
    }
    found.sort_by_key(|finding| finding.at.start);
    found
}

/// The text with everything that is found in it masked.
pub fn masked(text: &str) -> String {
    replaced(text, mask)
}

/// The text without what is found in it.
pub fn without(text: &str) -> String {
    replaced(text, |_, _| " ".into())
}

fn replaced(text: &str, with: impl Fn(&str, Kind) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for finding in find(text) {
        out.push_str(&text[end..finding.at.start]);
        out.push_str(&with(&text[finding.at.clone()], finding.kind));
        end = finding.at.end;
    }
    out + &text[end..]
}

/// What is shown of a finding: its kind and its length.
pub fn mask(text: &str, kind: Kind) -> String {
    format!("[{}, {} characters]", kind.name(), text.chars().count())
}

/// Whether what has the form is the thing.
fn holds(kind: Kind, text: &str, at: &Range<usize>) -> bool {
    let found = &text[at.clone()];
    match kind {
        Kind::PrivateKey | Kind::ApiKey | Kind::WebToken => true,
        Kind::Credential => {
            // A word after `password:` is no password.
            found.contains(|c: char| c.is_ascii_digit())
                && found.contains(|c: char| c.is_alphabetic())
        }
        Kind::Email => !is_reserved(found),
        Kind::Iban => iban_holds(found),
        Kind::Card => card_holds(found),
        Kind::IpAddress => address_holds(text, at),
        Kind::Phone => {
            let digits = found.chars().filter(char::is_ascii_digit).count();
            let before = text[..at.start].chars().next_back();
            (8..=15).contains(&digits) && !before.is_some_and(|c| c.is_alphanumeric() || c == '.')
        }
    }
}

fn is_reserved(address: &str) -> bool {
    let domain = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let top = domain.rsplit('.').next().unwrap_or_default();
    let names = ["example.com", "example.org", "example.net"];
    names.iter().any(|name| domain == *name || domain.ends_with(&format!(".{name}")))
        || ["test", "example", "invalid", "localhost"].contains(&top)
}

/// The remainder of the rearranged number by 97 is 1.
fn iban_holds(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    let (head, tail) = plain.split_at(4);
    let digits = tail.chars().chain(head.chars()).filter_map(|c| c.to_digit(36));
    let rest = digits.fold(0u32, |rest, digit| match digit {
        0..=9 => (rest * 10 + digit) % 97,
        _ => (rest * 100 + digit) % 97,
    });
    rest == 1
}

/// The issuers' first digits and lengths (ISO 7812), and Luhn's check digit.
fn card_holds(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let distinct = digits.iter().collect::<std::collections::BTreeSet<_>>().len();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match place % 2 {
            0 => digit,
            _ => (2 * digit) / 10 + (2 * digit) % 10,
        })
        .sum();
    let lengths = match digits.as_slice() {
        [3, 4 | 7, ..] => 15..=15,
        [3, 5, ..] => 16..=16,
        [3, 0 | 6 | 8 | 9, ..] => 14..=14,
        [4, ..] => 13..=19,
        [5, 1..=5, ..] | [2, 2..=7, ..] => 16..=16,
        [6, ..] => 16..=19,
        _ => return false,
    };
    lengths.contains(&digits.len()) && distinct > 2 && sum.is_multiple_of(10)
}

/// Public addresses that are not the number of a version.
fn address_holds(text: &str, at: &Range<usize>) -> bool {
    let found = &text[at.clone()];
    if let Ok(address) = found.parse::<Ipv6Addr>() {
        let first = address.segments()[0];
        let is_local =
            address.is_loopback() || (0xfe80..=0xfebf).contains(&first) || first >> 9 == 0x7e;
        // 2001:db8::/32 is for documentation (RFC 3849).
        let is_example = first == 0x2001 && address.segments()[1] == 0x0db8;
        return !is_local && !is_example && !address.is_unspecified();
    }
    let Ok(address) = found.parse::<Ipv4Addr>() else { return false };
    let before = text[..at.start].trim_end().to_ascii_lowercase();
    let is_version = before.ends_with(['v', '.', '=', '<', '>']) || before.ends_with("version");
    let more = text[at.end..].starts_with('.')
        && text[at.end + 1..].starts_with(|c: char| c.is_ascii_digit());
    let is_public = !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_unspecified()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || address.octets()[0] == 0
        || address.octets()[0] == 255);
    is_public && !is_version && !more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        find(text).into_iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn every_form_compiles() {
        assert_eq!(COMPILED.len(), FORMS.len());
    }

    #[test]
    fn secrets_and_personal_data_are_found() {
        let key = format!("ghp_{}", "a1B2".repeat(9));
        for (text, kind) in [
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow", Kind::PrivateKey),
            ("id AKIAIOSFODNN7ABCDEFG.", Kind::ApiKey),
            (key.as_str(), Kind::ApiKey),
            (
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
                Kind::WebToken,
            ),
            ("api_key = 'q9w8e7r6t5y4u3i2o1'", Kind::Credential),
            ("Write to jane.doe+x@mail.halter.dev, please", Kind::Email),
            ("call +49 30 1234567 now", Kind::Phone),
            ("call (415) 555-2671", Kind::Phone),
            ("IBAN DE89 3704 0044 0532 0130 00", Kind::Iban),
            ("card 4111 1111 1111 1111? no: 4539 1488 0343 6467", Kind::Card),
            ("ping 93.184.216.34 works", Kind::IpAddress),
            ("at 2606:2800:220:1:248:1893:25c8:1946", Kind::IpAddress),
        ] {
            assert!(kinds(text).contains(&kind), "{text}: {:?}", kinds(text));
        }
    }

    #[test]
    fn what_only_looks_alike_is_not() {
        for text in [
            "jane@example.com and root@host.test",
            "192.168.0.1, 127.0.0.1, 10.0.0.7, 192.0.2.5, 0.0.0.0",
            "version 1.2.3.4 and v8.8.8.8",
            "at 12:30:45, ::1 and 2001:db8::1",
            "DE89 3704 0044 0532 0130 01",
            "4539 1488 0343 6468 and 4444 4444 4444 4444",
            "password: correcthorsebatterystaple",
            "3.14159265358979 and 1234567890",
            "x = a[100] - 200 - 3000",
            "2024-01-02 10:11:12",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn masked_text_holds_nothing_more_to_find() {
        let text = "a@mail.dev, +49 30 1234567 — 4539148803436467!";
        let masked = masked(text);
        assert_eq!(
            masked,
            "[e-mail address, 10 characters], [phone number, 14 characters] — [payment card, 16 characters]!"
        );
        assert!(find(&masked).is_empty());
        assert_eq!(without(text).split_whitespace().collect::<String>(), ",—!");
    }
}
