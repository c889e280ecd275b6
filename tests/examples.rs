//! The examples that need nothing but what is part of halter run as they are.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::process::Command;

#[test]
fn examples_run_as_they_are() {
    let folder = std::env::current_exe().unwrap().with_file_name("../examples");
    let place = env!("CARGO_TARGET_TMPDIR");
    for (name, told) in [
        ("ask", "4 requests"),
        ("own_divergence", ""),
        ("own_hidden_loss", ""),
        ("own_loss", "step 10"),
        ("own_preference_loss", ""),
        ("own_step", "1 left"),
        ("verify", "He has 3 + 4 = 7 apples."),
    ] {
        let program = folder.join(name);
        // `cargo test` builds them beside the tests; `cargo test --test examples` does not.
        assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
        let output = Command::new(program).current_dir(place).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        assert!(!stdout.is_empty() && stdout.contains(told), "{name}: {stdout}");
    }
}
