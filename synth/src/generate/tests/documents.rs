use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::{Script, prompts, reasons, run};

const PAGE: &str =
    "<html><body><h1>Bees</h1><p>Bees dance to tell where flowers are.</body></html>";

/// A PDF of one page that draws `lines`.
fn pdf(lines: &[&str]) -> Vec<u8> {
    let draw: String = lines.iter().map(|line| format!("({line}) Tj T*\n")).collect();
    let content = format!("BT /F1 12 Tf 14 TL 72 720 Td\n{draw}ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_string(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".into(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R \
         /Resources << /Font << /F1 5 0 R >> >> >>"
            .into(),
        format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".into(),
    ];
    let mut file = "%PDF-1.4\n".to_string();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (at, object) in objects.iter().enumerate() {
        table += &format!("{:010} 00000 n \n", file.len());
        file += &format!("{} 0 obj\n{object}\nendobj\n", at + 1);
    }
    let start = file.len();
    file += &format!("{table}trailer\n<< /Size {} /Root 1 0 R >>\n", objects.len() + 1);
    file += &format!("startxref\n{start}\n%%EOF\n");
    file.into_bytes()
}

fn place(files: &[(&str, &[u8])]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    place
}

/// The script's passage, which the prompts show between two marks.
fn passage(asked: &str) -> &str {
    let after = asked.split_once("[Text]\n").unwrap().1;
    after.split_once("\n[End of the text]").unwrap().0
}

#[test]
fn every_format_is_read_and_a_damaged_file_costs_itself_only() {
    let place = place(&[
        ("a.md", b"# Ants\n\nAnts carry leaves.\r\n"),
        ("deep/b.html", PAGE.as_bytes()),
        ("deep/c.pdf", &pdf(&["Cats sleep a lot, and some-", "times they purr."])),
        ("deep/cut.pdf", &pdf(&["Cats"])[..20]),
        ("latin.txt", b"caf\xe9 au lait"),
        ("scan.pdf", &pdf(&[])),
        ("skipped.csv", b"a,b"),
        (".hidden.txt", b"hidden words"),
        ("z.txt", b"Z"),
    ]);
    let told = place.path().display();
    let options = format!("files = [\"{told}\", \"{told}/a.md\"]\nmin_chars = 5");
    let outcome = run("documents", &options, vec![], |asked| {
        let answer = passage(asked).replace('\n', " ");
        Some(format!("```json\n{}\n```", json!([{"question": "What?", "answer": answer}])))
    });
    let said: Vec<_> = outcome.rows.iter().filter_map(crate::generate::reply::answer).collect();
    let expected = [
        "# Ants  Ants carry leaves.",
        "# Bees  Bees dance to tell where flowers are.",
        "Cats sleep a lot, and sometimes they purr.",
    ];
    assert_eq!(said, expected);
    assert_eq!(reasons(&outcome), ["damaged PDF", "not UTF-8", "no text", "too short"]);
    let told = outcome.removed[0].row.text("document").unwrap();
    assert!(told.ends_with("deep/cut.pdf"), "{told}");
    let origin = &outcome.rows[1].0["provenance"][0]["document"];
    assert!(origin["path"].as_str().unwrap().ends_with("deep/b.html"));
    assert_eq!(origin["hash"], blake3::hash(PAGE.as_bytes()).to_hex().as_str());
    assert_eq!(origin["passage"], 1);
    assert_eq!(
        (&outcome.figures["documents"], &outcome.figures["passages"]),
        (&json!(7), &json!(3))
    );
}

#[test]
fn no_damage_to_a_pdf_ends_the_others() {
    let whole = pdf(&["Cats sleep a lot."]);
    let mut files = vec![("good.txt".to_string(), b"Ants carry leaves.".to_vec())];
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] = bytes[at].wrapping_add(13);
        files.push((format!("changed-{at}.pdf"), bytes));
        files.push((format!("cut-{at}.pdf"), whole[..at].to_vec()));
    }
    let named: Vec<(&str, &[u8])> = files.iter().map(|(name, b)| (&name[..], &b[..])).collect();
    let place = place(&named);
    let options = format!("files = [\"{}\"]\nmin_chars = 5", place.path().display());
    let outcome = run("documents", &options, vec![], |asked| {
        Some(json!([{"question": "What?", "answer": passage(asked)}]).to_string())
    });
    assert_eq!(outcome.rows.len() + outcome.removed.len(), files.len());
    let is_good = |row: &crate::Row| row.text("passage") == Some("Ants carry leaves.");
    assert!(outcome.rows.iter().any(is_good));
    assert!(outcome.removed.len() > files.len() / 3, "{}", outcome.removed.len());
}

#[test]
fn replies_are_read_strictly() {
    let rows = vec![json!({"text": "Ants carry leaves."}), json!({"prompt": "no text"})];
    let options = "min_chars = 5\nquestions = 2\nwith_passage = true";
    let outcome = run("documents", options, rows.clone(), |_| {
        let good = json!({"question": "What do ants carry?", "answer": "Leaves."});
        let more = json!({"question": "Why?", "answer": " ", "note": 1});
        Some(json!([good, more, good]).to_string())
    });
    assert_eq!(prompts(&outcome), ["Ants carry leaves.\n\nWhat do ants carry?"]);
    assert_eq!(reasons(&outcome), ["no text", "beyond `questions`", "no pair"]);
    let prose: Script = |_| Some("Q: What? A: Leaves.".into());
    assert_eq!(reasons(&run("documents", options, rows.clone(), prose)), ["no text", "no list"]);
    let cut: Script = |_| Some("[{\"question\": …".into());
    assert_eq!(reasons(&run("documents", options, rows, cut)), ["no text", "cut off"]);
}

#[test]
fn what_the_passage_does_not_support_is_removed() {
    let rows = ["ants", "bees", "cats"].map(|text| json!({"text": text})).to_vec();
    let options = "min_chars = 1\nmake = [\"questions\", \"summary\"]\ncheck = true";
    let outcome = run("documents", options, rows, |asked| {
        if asked.starts_with("Summarise") {
            return Some("A summary.".into());
        }
        let of = passage(asked);
        Some(match (asked.contains("Verdict:"), of) {
            (false, _) => json!([{"question": format!("{of}?"), "answer": "so"}]).to_string(),
            (true, "ants") => "It does.\n\n**Verdict: supported**".into(),
            (true, "bees") => "Verdict: not supported".into(),
            (true, _) => "It seems to be supported".into(),
        })
    });
    let asked = prompts(&outcome);
    assert_eq!((asked.len(), asked[0].as_str()), (2, "ants?"));
    assert!(asked[1].starts_with("Summarise") && asked[1].ends_with("ants"));
    assert_eq!(reasons(&outcome), ["not supported", "not supported", "no verdict", "no verdict"]);
    assert_eq!(outcome.figures["questions"], 12);
}

#[test]
fn files_that_are_not_documents_are_refused() {
    let place = place(&[("a.csv", b"a"), ("empty/.keep", b"")]);
    for name in ["absent.txt", "a.csv", "empty"] {
        let path = place.path().join(name);
        let table = format!("files = [\"{}\"]", path.display()).parse().unwrap();
        let mut options = crate::pipeline::Options::new(
            std::path::Path::new("p.toml"),
            1,
            Default::default(),
            table,
        );
        let error = crate::generate::step("documents", &mut options, &["one"]).unwrap().err();
        let error = error.unwrap().to_string();
        assert!(error.contains("p.toml:1: `files`") && error.contains(name), "{error}");
    }
}
