//! Each test of a hostile program looks from outside at what it did.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::layers::Layers;
use super::linux::Engine;
use super::*;

/// With namespaces, and without them.
struct Both {
    with: Option<Sandbox>,
    without: Option<Sandbox>,
}

fn settings() -> Settings {
    Settings {
        limits: Limits {
            wall: Duration::from_millis(1500),
            cpu_seconds: 1,
            memory: 256 << 20,
            tasks: 16,
            disk: 4 << 20,
            output: 64 << 10,
            ..Limits::default()
        },
        ..Settings::default()
    }
}

/// Where the interpreter of `PATH` lies in a home directory, only the system's serves everyone.
fn without_namespaces(mut settings: Settings) -> Result<Sandbox> {
    let mut layers = Layers::found();
    layers.namespaces = Err("left out by a test".into());
    let start = |settings: &Settings| {
        Engine::with_layers(settings.clone(), layers.clone())
            .map(|engine| Sandbox { engine })
            .map_err(|start| start.into_error())
    };
    start(&settings).or_else(|_| {
        settings.interpreter[0] = "/usr/bin/python3".into();
        start(&settings)
    })
}

fn with_namespaces(settings: Settings) -> Result<Sandbox> {
    Engine::with_layers(settings, Layers::found())
        .map(|engine| Sandbox { engine })
        .map_err(|start| start.into_error())
}

fn make(kind: &str, sandbox: Result<Sandbox>) -> Option<Sandbox> {
    sandbox.map_err(|error| eprintln!("skipped {kind} namespaces: {error}")).ok()
}

fn both() -> &'static Both {
    static BOTH: OnceLock<Both> = OnceLock::new();
    BOTH.get_or_init(|| Both {
        with: make("with", with_namespaces(settings())),
        without: make("without", without_namespaces(settings())),
    })
}

/// Runs `source` in each sandbox.
fn each(source: &str, look: impl Fn(&Outcome)) {
    for sandbox in [&both().with, &both().without].into_iter().flatten() {
        look(&run(sandbox, source));
    }
}

fn run(sandbox: &Sandbox, source: &str) -> Outcome {
    let outcome = sandbox.run(&Program::new(source)).unwrap();
    println!("{outcome:?}");
    outcome
}

/// A sandbox whose processes can be counted from outside, and that may start them.
fn marked(marker: &str, processes: bool) -> Option<Sandbox> {
    let mut settings = settings();
    settings.interpreter.push(format!("-Xmarker={marker}"));
    settings.limits.processes = processes;
    make("with", with_namespaces(settings))
}

/// Processes with `marker` on their command line, other than zombies.
fn count(marker: &str) -> usize {
    let commands = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    let marker = format!("-Xmarker={marker}");
    commands.filter(|command| String::from_utf8_lossy(command).contains(&marker)).count()
}

fn ends_well(outcome: &Outcome) {
    assert_eq!(outcome.status, Status::Exited(0), "{outcome:?}");
}

#[test]
fn a_program_says_hello() {
    each("print('hello')", |outcome| {
        assert_eq!(outcome.status, Status::Exited(0));
        assert_eq!(outcome.stdout, "hello\n");
    });
}

#[test]
fn a_program_reads_stdin_and_its_files() {
    let program = Program {
        source: "import sys; print(sys.stdin.read(), open('a/b.txt').read())".into(),
        stdin: b"in".to_vec(),
        files: vec![("a/b.txt".into(), b"file".to_vec())],
    };
    for sandbox in [&both().with, &both().without].into_iter().flatten() {
        assert_eq!(sandbox.run(&program).unwrap().stdout, "in file\n");
    }
}

#[test]
fn files_outside_the_folder_are_refused() {
    for path in ["../x", "/tmp/x", "", "a/../../x"] {
        assert!(check_inside(path.as_ref()).is_err(), "{path}");
    }
    assert!(check_inside("a/b".as_ref()).is_ok());
}

#[test]
fn ends_are_told_apart() {
    each("raise SystemExit(3)", |outcome| assert_eq!(outcome.status, Status::Exited(3)));
    each("import ctypes; ctypes.string_at(0)", |outcome| {
        assert_eq!(outcome.status, Status::Signal(libc::SIGSEGV));
    });
}

#[test]
fn loops_end_at_the_limit_of_processor_time() {
    each("while True: pass", |outcome| {
        assert_eq!(outcome.status, Status::TimedOut);
    });
}

#[test]
fn programs_that_ignore_signals_end_at_the_limit_of_time() {
    let source = "import signal, time\nfor s in set(range(1, 65)) - {9, 19, 32, 33}:\n    \
                  signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)";
    each(source, |outcome| {
        assert_eq!(outcome.status, Status::TimedOut);
        assert!((1.5..3.0).contains(&outcome.seconds), "{}", outcome.seconds);
    });
}

#[test]
fn memory_is_bounded() {
    each("x = bytearray(1 << 32)", |outcome| assert_eq!(outcome.status, Status::OutOfMemory));
    let source = "x = []\nwhile True: x.append(bytearray(1 << 20))";
    each(source, |outcome| assert_eq!(outcome.status, Status::OutOfMemory));
}

#[test]
fn output_is_bounded() {
    for stream in ["stdout", "stderr"] {
        each(&format!("import sys\nwhile True: sys.{stream}.write('x' * 999)"), |outcome| {
            assert_eq!(outcome.status, Status::TooMuchOutput);
            assert_eq!(outcome.stdout.len() + outcome.stderr.len(), 64 << 10);
        });
    }
}

#[test]
fn nothing_of_the_caller_is_inherited() {
    // SAFETY: a descriptor of this test's own, that programs would inherit.
    let leaked = unsafe { libc::dup(2) };
    let source = "
import os
print(*sorted(os.environ))
def is_open(fd):
    try: os.fstat(fd); return True
    except OSError: return False
print(*[fd for fd in range(64) if is_open(fd)])
";
    each(source, |outcome| assert_eq!(outcome.stdout, "HOME LANG PATH TMPDIR\n0 1 2\n"));
    // SAFETY: it was opened above.
    unsafe { libc::close(leaked) };
}

#[test]
fn no_process_is_started_unless_allowed() {
    let source = "
import os, subprocess, multiprocessing
for start in (os.fork, lambda: subprocess.run(['/bin/true']),
              lambda: os.posix_spawn('/bin/true', ['true'], {})):
    try: start(); print('started')
    except OSError as error: print(error.errno)
";
    each(source, |outcome| assert_eq!(outcome.stdout, "1\n1\n1\n"));
}

#[test]
fn a_fork_bomb_is_bounded_and_gone() {
    let marker = format!("bomb{}", std::process::id());
    let Some(sandbox) = marked(&marker, true) else { return };
    let source = "
import os
while True:
    try: os.fork()
    except OSError: pass
";
    std::thread::scope(|scope| {
        let bomb = scope.spawn(|| run(&sandbox, source));
        let mut most = 0;
        while !bomb.is_finished() {
            most = most.max(count(&marker));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(bomb.join().unwrap().status, Status::TimedOut);
        assert!((2..=16).contains(&most), "{most} processes");
    });
    assert_eq!(count(&marker), 0);
}

#[test]
fn daemons_end_with_the_program() {
    let marker = format!("daemon{}", std::process::id());
    let Some(sandbox) = marked(&marker, true) else { return };
    let source = "
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(1); os.close(2)
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
print('left')
";
    let outcome = run(&sandbox, source);
    ends_well(&outcome);
    assert_eq!(outcome.stdout, "left\n");
    assert!(outcome.seconds < 1.4, "the daemon was waited for");
    assert_eq!(count(&marker), 0);
}

#[test]
fn threads_are_bounded() {
    let source = "
import threading, time
threading.stack_size(32768)
n = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
except (RuntimeError, MemoryError): pass
import os
os.write(1, str(n).encode()); os._exit(0)
";
    for (sandbox, most) in [(&both().with, 16), (&both().without, 8192)] {
        let Some(sandbox) = sandbox else { continue };
        let started: usize = run(sandbox, source).stdout.parse().unwrap_or(0);
        assert!(started < most, "{started} threads");
    }
}

#[test]
fn no_connection_is_made() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let local = std::os::unix::net::UnixListener::bind(&path).unwrap();
    local.set_nonblocking(true).unwrap();
    let (tcp, udp) =
        (listener.local_addr().unwrap().port(), datagrams.local_addr().unwrap().port());
    let source = format!(
        "
import socket
def attempt(f):
    try: f(); print('did')
    except OSError as error: print('failed')
attempt(lambda: socket.create_connection(('127.0.0.1', {tcp})))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp})))
attempt(lambda: socket.socket(socket.AF_UNIX).connect({path:?}))
attempt(lambda: socket.getaddrinfo('example.com', 80))
attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {path:?}))
"
    );
    let mut layers = Layers::found();
    layers.seccomp = Err("left out by a test".into());
    let unfiltered = Engine::with_layers(settings(), layers)
        .map(|engine| Sandbox { engine })
        .map_err(|start| start.into_error());
    let unfiltered = make("with", unfiltered);
    for sandbox in [&both().with, &both().without, &unfiltered].into_iter().flatten() {
        assert_eq!(run(sandbox, &source).stdout, "failed\n".repeat(5));
    }
    assert!(listener.accept().is_err());
    assert!(local.accept().is_err());
    assert!(datagrams.recv(&mut [0; 8]).is_err());
}

#[test]
fn event_loops_work() {
    each("import asyncio\nasync def f(): return 1\nprint(asyncio.run(f()))", |outcome| {
        assert_eq!(outcome.stdout, "1\n");
    });
}

#[test]
fn nothing_outside_is_read() {
    let home = std::env::home_dir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let here = std::env::current_dir().unwrap();
    let pid = std::process::id();
    let source = format!(
        "
import os
for path in {home:?}, {folder:?}, {here:?}, '/home', '/root', '/etc', '/proc', '/proc/{pid}', '/proc/self', '/':
    try: os.listdir(path); print('listed', path) if path != '/' else None
    except OSError: pass
for path in {secret:?}, {manifest:?}, '/etc/passwd', '/etc/shadow', '/proc/{pid}/environ', \\
        '/proc/{pid}/mem', '/proc/self/mem', '/proc/self/environ':
    try: open(path, 'rb').read(1); print('read', path)
    except OSError: pass
os.symlink({secret:?}, 'link'); os.symlink({home:?}, 'home')
for path in 'link', '../' * 20 + {secret:?}[1:]:
    try: open(path).read(); print('followed', path)
    except OSError: pass
try: os.listdir('home'); print('followed home')
except OSError: pass
try: os.link({secret:?}, 'hard'); print('linked')
except OSError: pass
",
        folder = folder.path(),
        manifest = here.join("Cargo.toml"),
    );
    each(&source, |outcome| {
        ends_well(outcome);
        assert_eq!(outcome.stdout, "");
    });
}

#[test]
fn nothing_outside_is_written() {
    let mark = format!("halter-test-mark-{}", std::process::id());
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    std::fs::write(&kept, "kept").unwrap();
    // Anyone may write there: only the sandbox is in the way.
    use std::os::unix::fs::PermissionsExt;
    for path in [folder.path(), &kept] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let folders =
        ["/tmp", "/dev/shm", "/var/tmp", "/", "/usr", "/home", "/root"].map(PathBuf::from);
    let mut folders = folders.to_vec();
    folders.extend([folder.path().into(), std::env::home_dir().unwrap()]);
    folders.push(std::env::current_dir().unwrap());
    let source = format!(
        "
import os
for folder in {folders:?}:
    for write in (lambda p: open(p, 'w'), os.mkdir, lambda p: os.symlink('x', p), os.mkfifo):
        try: write(folder + '/{mark}')
        except OSError: pass
kept = {kept:?}
os.symlink(os.path.dirname(kept), 'link')
for harm in (lambda: open(kept, 'w'), lambda: os.truncate(kept, 0), lambda: os.chmod(kept, 0),
             lambda: os.utime(kept, (0, 0)), lambda: os.remove(kept), lambda: os.remove('link/kept'),
             lambda: os.rename(kept, 'mine'), lambda: os.setxattr(kept, 'user.x', b'x'),
             lambda: open('link/new', 'w')):
    try: harm(); print('did harm')
    except OSError: pass
"
    );
    each(&source, |outcome| {
        ends_well(outcome);
        assert_eq!(outcome.stdout, "");
        for folder in &folders {
            assert!(folder.join(&mark).symlink_metadata().is_err(), "{}", folder.display());
        }
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "kept");
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o777);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    });
}

#[test]
fn the_disk_is_not_filled() {
    let one = "
try:
    with open('x', 'wb') as f:
        while True: f.write(bytes(1 << 16))
except OSError: pass
import os; print(os.path.getsize('x') <= 4 << 20)
";
    each(one, |outcome| assert_eq!(outcome.stdout, "True\n"));
    let many = "
n = 0
try:
    while True:
        with open(str(n), 'wb') as f: f.write(bytes(1 << 16))
        n += 1
except OSError: pass
print(n << 16 <= 4 << 20)
";
    if let Some(sandbox) = &both().with {
        assert_eq!(run(sandbox, many).stdout, "True\n");
    }
}

#[test]
fn nobody_else_gets_a_signal() {
    let sleeper = std::process::Command::new("sleep").arg("60").spawn();
    let Ok(mut sleeper) = sleeper else { return };
    let source = format!(
        "
import os, signal
for pid in {}, {}, os.getppid(), -1:
    if pid == 0: continue
    for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
        try: os.kill(pid, s); print('sent', pid) if pid > 0 else None
        except OSError: pass
",
        std::process::id(),
        sleeper.id()
    );
    each(&source, |outcome| {
        ends_well(outcome);
        assert_eq!(outcome.stdout, "");
    });
    assert!(sleeper.try_wait().unwrap().is_none(), "the sleeper was killed");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
#[cfg(target_arch = "x86_64")]
fn harmful_system_calls_fail() {
    let source = format!(
        "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
calls = dict(ptrace=(101, 16, {pid}), process_vm_readv=(310, {pid}, 0, 0, 0, 0, 0),
    mount=(165, 0, 0, 0, 0, 0), unshare=(272, 0x10000000), bpf=(321, 0, 0, 0),
    io_uring_setup=(425, 1, 0), keyctl=(250, 0, 0), userfaultfd=(323, 0),
    perf_event_open=(298, 0, 0, 0, 0, 0), memfd_create=(319, 0, 0), socket=(41, 1, 1, 0),
    setns=(308, 0, 0), chroot=(161, b'.'), prlimit=(302, {pid}, 7, 0, 0), shmget=(29, 0, 4096, 0o1600),
    clone_namespace=(56, 0x10000011, 0, 0, 0, 0), pdeathsig=(157, 1, 0, 0, 0, 0),
    setown=(72, 0, 8, {pid}))
for name, arguments in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result != -1 or ctypes.get_errno() != 1: print(name, result, ctypes.get_errno())
for new in (463, 467, 0x40000000 + 39):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(new), 0, 0) != -1 or ctypes.get_errno() != 38: print(new)
",
        pid = std::process::id()
    );
    each(&source, |outcome| {
        ends_well(outcome);
        assert_eq!(outcome.stdout, "");
    });
}

#[test]
fn folders_are_removed_whatever_is_in_them() {
    let source = "
import os, shutil
print(os.getcwd(), flush=True)
os.mkdir('mine'); os.symlink('/usr', 'mine/link'); os.mkfifo('pipe')
os.umask(0o777); os.makedirs('closed'); os.umask(0)
try:
    while True: os.mkdir('deep'); os.chdir('deep')
except OSError: pass
";
    if let Some(sandbox) = &both().without {
        let outcome = run(sandbox, source);
        let folder = outcome.stdout.lines().next().unwrap();
        assert!(folder.contains("halter-sandbox-"), "{folder}");
        assert!(!Path::new(folder).exists());
    }
    each("import shutil, os; shutil.rmtree(os.getcwd(), ignore_errors=True)", ends_well);
}

#[test]
fn many_threads_run_programs_at_once() {
    let Some(sandbox) = both().with.as_ref().or(both().without.as_ref()) else { return };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for turn in 0..3 {
                    let outcome = run(sandbox, &format!("print({thread} * 10 + {turn})"));
                    assert_eq!(outcome.stdout, format!("{}\n", thread * 10 + turn));
                }
            });
        }
    });
    println!("24 programs in {:?}", started.elapsed());
}

#[test]
fn a_program_ends_with_its_caller() {
    const ROLE: &str = "HALTER_TEST_SANDBOX_MARKER";
    if let Ok(marker) = std::env::var(ROLE) {
        let mut settings = settings();
        settings.interpreter.push(format!("-Xmarker={marker}"));
        settings.limits.wall = Duration::from_secs(30);
        if let Ok(sandbox) = Sandbox::new(settings) {
            run(&sandbox, "import time; time.sleep(30)");
        }
        return;
    }
    if both().with.is_none() {
        return;
    }
    let marker = format!("orphan{}", std::process::id());
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::a_program_ends_with_its_caller"])
        .env(ROLE, &marker)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The start tries a short program out first, so that one look is not enough.
    let mut seen = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while seen < 20 && Instant::now() < deadline {
        seen = if count(&marker) > 0 { seen + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(seen, 20, "the program did not start");
    caller.kill().unwrap();
    caller.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(3);
    while count(&marker) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count(&marker), 0);
}

#[test]
fn a_missing_interpreter_is_an_error_with_a_hint() {
    let settings = Settings { interpreter: vec!["no-such-python".into()], ..settings() };
    let error = Sandbox::new(settings).unwrap_err();
    assert!(error.message().contains("`no-such-python`"), "{error}");
    assert!(error.remedy().unwrap().contains("install Python 3"));
    let settings = Settings { interpreter: vec!["true".into()], ..self::settings() };
    assert!(Sandbox::new(settings).unwrap_err().message().contains("does not run Python"));
}

#[test]
fn a_guarantee_that_cannot_be_given_is_an_error_unless_given_up() {
    let none = Layers {
        namespaces: Err("refused".into()),
        landlock: Err("not there".into()),
        seccomp: Ok(()),
    };
    let error = none.check(false, &[]).unwrap_err();
    assert!(error.message().contains("`no writes outside the program's folder` is missing"));
    assert!(error.message().contains("namespaces: refused; Landlock: not there"), "{error}");
    assert!(error.remedy().unwrap().contains("allow_weaker"));
    let files = [Guarantee::NoWritesOutside, Guarantee::NoReadsOutside];
    assert!(none.check(false, &files[..1]).is_err());
    assert!(none.check(false, &files).is_ok());
    assert!(none.check(true, &files).is_err(), "a program with processes needs namespaces");
    let old = Layers { landlock: Ok(2), ..none.clone() };
    assert!(old.check(false, &[]).is_err(), "an old Landlock lets files be cut");
    assert!(Layers { landlock: Ok(3), ..none }.check(false, &[]).is_ok());
}

#[test]
fn an_ordinary_user_is_contained_as_well() {
    use std::os::unix::process::CommandExt;
    // SAFETY: this call cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return println!("skipped: these tests run as an ordinary user already");
    }
    const NOBODY: u32 = 65534;
    let tests = [
        "a_program_says_hello",
        "harmful_system_calls_fail",
        "no_connection_is_made",
        "no_process_is_started_unless_allowed",
        "nobody_else_gets_a_signal",
        "nothing_outside_is_read",
        "nothing_outside_is_written",
    ];
    let output = std::process::Command::new("/proc/self/exe")
        .args(tests)
        .arg("--nocapture")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env_remove("TMPDIR")
        .current_dir("/")
        .gid(NOBODY)
        .uid(NOBODY)
        .output()
        .unwrap();
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    println!("{stdout}{stderr}");
    assert!(output.status.success() && stdout.contains(" passed; 0 failed; 0 ignored"), "{stdout}");
    assert!(!stdout.contains(" 0 passed"), "no test of this name");
}
