//! Which language a text is in.

use std::str::FromStr;
use std::sync::LazyLock;

use halter_core::{Error, Result};
use whatlang::{Detector, Lang};

/// ISO 639-1 codes: those that IFEval asks for, and Chinese.
const LANGUAGES: [(&str, Lang); 30] = [
    ("ar", Lang::Ara),
    ("bg", Lang::Bul),
    ("bn", Lang::Ben),
    ("de", Lang::Deu),
    ("en", Lang::Eng),
    ("es", Lang::Spa),
    ("fa", Lang::Pes),
    ("fi", Lang::Fin),
    ("fr", Lang::Fra),
    ("gu", Lang::Guj),
    ("he", Lang::Heb),
    ("hi", Lang::Hin),
    ("it", Lang::Ita),
    ("ja", Lang::Jpn),
    ("kn", Lang::Kan),
    ("ko", Lang::Kor),
    ("ml", Lang::Mal),
    ("mr", Lang::Mar),
    ("ne", Lang::Nep),
    ("pa", Lang::Pan),
    ("pl", Lang::Pol),
    ("pt", Lang::Por),
    ("ru", Lang::Rus),
    ("ta", Lang::Tam),
    ("te", Lang::Tel),
    ("th", Lang::Tha),
    ("uk", Lang::Ukr),
    ("ur", Lang::Urd),
    ("vi", Lang::Vie),
    ("zh", Lang::Cmn),
];

/// A language that can be told from its letters and their sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Language(Lang);

impl Language {
    pub(super) const ENGLISH: Self = Self(Lang::Eng);

    /// Whether this is the likeliest language of `text`, among those listed here; a text without
    /// letters of any of them counts as every language.
    pub(super) fn is_that_of(self, text: &str) -> bool {
        static DETECTOR: LazyLock<Detector> =
            LazyLock::new(|| Detector::with_allowlist(LANGUAGES.map(|(_, lang)| lang).to_vec()));
        DETECTOR.detect_lang(text).is_none_or(|found| found == self.0)
    }
}

impl FromStr for Language {
    type Err = Error;

    fn from_str(code: &str) -> Result<Self> {
        let found = LANGUAGES.iter().find(|(known, _)| *known == code);
        found.map(|(_, lang)| Self(*lang)).ok_or_else(|| {
            let codes = LANGUAGES.map(|(code, _)| code).join(", ");
            Error::data(format!("expected a language that can be told apart, got `{code}`"))
                .hint(format!("these can: {codes}"))
        })
    }
}
