//! Ctrl-C: the first one asks the run to stop where nothing is lost, the second one stops it.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use halter_core::train::interrupt::Interrupt;

/// The exit code of a process that Ctrl-C ended, as shells have it.
pub const INTERRUPTED: i32 = 130;

/// Sets the flag when the user presses Ctrl-C or the system asks the process to end. One flag for the
/// whole process.
pub fn on_ctrl_c() -> anyhow::Result<Interrupt> {
    static FLAG: Mutex<Option<Interrupt>> = Mutex::new(None);
    let mut set = FLAG.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(interrupt) = &*set {
        return Ok(interrupt.clone());
    }
    let interrupt = Interrupt::new();
    let flag = interrupt.clone();
    ctrlc::set_handler(move || {
        if flag.set() {
            std::process::exit(INTERRUPTED);
        }
        let _ = writeln!(
            std::io::stderr(),
            "\nstopping where nothing is lost (Ctrl-C again quits at once)"
        );
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(set.insert(interrupt).clone())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    /// Not a test by itself: says when it listens and when the flag is set; goes on all the same.
    #[test]
    fn helper_that_listens() {
        if std::env::var_os("HALTER_TEST_LISTEN").is_none() {
            return;
        }
        let interrupt = on_ctrl_c().unwrap();
        let mut stderr = std::io::stderr();
        writeln!(stderr, "listening").unwrap();
        while !interrupt.is_set() {
            std::thread::sleep(Duration::from_millis(1));
        }
        writeln!(stderr, "asked").unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }

    fn press(child: &Child, signal: &str) {
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    #[test]
    fn the_first_signal_asks_and_the_second_quits_with_130() {
        for signal in ["-INT", "-TERM"] {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "interrupt::tests::helper_that_listens", "--nocapture"])
                .env("HALTER_TEST_LISTEN", "1")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let mut wait_for = |wanted: &str| {
                let found = lines.by_ref().map(Result::unwrap).any(|line| line.starts_with(wanted));
                assert!(found, "the helper never said `{wanted}`");
            };
            wait_for("listening");
            press(&child, signal);
            wait_for("asked");
            press(&child, signal);
            assert_eq!(child.wait().unwrap().code(), Some(130));
        }
    }
}
