use std::cell::Cell;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    step: u64,
    loss: f64,
}

/// Values that depend on the step, so that a mixture of two checkpoints cannot pass.
fn values(step: u64, count: usize) -> Vec<f32> {
    (0..count).map(|index| (step * 1000) as f32 + index as f32 / 7.0).collect()
}

fn save_through(
    store: &CheckpointStore,
    step: u64,
    count: usize,
    open: &OpenSink<'_>,
) -> Result<()> {
    let weights = Tensor::from_vec(values(step, count), count, &Device::Cpu)?;
    let (moments, shape) = (values(step + 1, count), [count]);
    let groups = [
        Group { name: "weights", tensors: vec![("w".to_string(), (&weights).into())] },
        Group {
            name: "optimizer",
            tensors: vec![("w.m".to_string(), Values::F32 { shape: &shape, values: &moments })],
        },
    ];
    let state = State { step, loss: 0.1 + step as f64 };
    store.save_through(step, &groups, &state, open).map(drop)
}

fn save(store: &CheckpointStore, step: u64, count: usize) {
    save_through(store, step, count, &|path| Ok(Box::new(File::create_new(path)?))).unwrap();
}

fn assert_whole(checkpoint: &Checkpoint, count: usize) {
    let step = checkpoint.step();
    let state: State = checkpoint.state().unwrap();
    assert_eq!(state, State { step, loss: 0.1 + step as f64 });
    for (group, name, step) in [("weights", "w", step), ("optimizer", "w.m", step + 1)] {
        let tensors = checkpoint.tensors(group, &Device::Cpu).unwrap();
        assert_eq!(tensors[name].to_vec1::<f32>().unwrap(), values(step, count));
    }
}

fn store(dir: &tempfile::TempDir, keep_last: usize) -> CheckpointStore {
    CheckpointStore::open(dir.path().join("checkpoints"), keep_last).unwrap()
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 0);
    assert!(store.latest().unwrap().checkpoint.is_none(), "nothing saved yet");
    save(&store, 9, 100);
    save(&store, 10, 100);
    let found = store.latest().unwrap();
    assert!(found.notices.is_empty());
    let checkpoint = found.checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 10, "by number, not by name");
    assert_whole(&checkpoint, 100);
    assert!(checkpoint.tensors("nothing", &Device::Cpu).is_err());
}

#[test]
fn only_the_last_checkpoints_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 2);
    for step in [8, 9, 10, 11] {
        save(&store, step, 10);
    }
    assert_eq!(store.steps().unwrap(), [10, 11]);
    assert_eq!(store.names().unwrap().len(), 2, "no leftovers");
}

#[test]
fn any_damage_to_the_newest_falls_back_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 0);
    save(&store, 1, 40);
    save(&store, 2, 40);
    let newest = store.path_of(2);
    let names = ["weights.safetensors", "optimizer.safetensors", STATE, MANIFEST];
    let mut cases = 0;
    for name in names {
        let path = newest.join(name);
        let good = fs::read(&path).unwrap();
        let mut damaged: Vec<Option<Vec<u8>>> = vec![None, Some(vec![])];
        damaged.push(Some(good[..good.len() - 1].to_vec()));
        damaged.push(Some([good.as_slice(), b" "].concat()));
        for at in (0..good.len()).step_by(13) {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 8);
            damaged.push(Some(flipped));
        }
        for bytes in damaged {
            // A space after the manifest changes nothing that it says.
            if name == MANIFEST && bytes.as_ref().is_some_and(|b| b.len() == good.len() + 1) {
                continue;
            }
            match &bytes {
                None => fs::remove_file(&path).unwrap(),
                Some(bytes) => fs::write(&path, bytes).unwrap(),
            }
            let found = store.latest().unwrap();
            // White space of the manifest may be flipped into other white space.
            if name == MANIFEST && found.notices.is_empty() {
                let bytes = bytes.unwrap();
                let same: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(same, serde_json::from_slice::<serde_json::Value>(&good).unwrap());
                continue;
            }
            assert_eq!(found.notices.len(), 1, "{name}: {:?}", bytes.map(|b| b.len()));
            assert!(found.notices[0].contains("`step-2` is damaged"), "{:?}", found.notices);
            assert!(found.notices[0].ends_with("going back to `step-1`"));
            assert_whole(&found.checkpoint.unwrap(), 40);
            cases += 1;
        }
        fs::write(&path, good).unwrap();
    }
    assert!(cases > 80, "only {cases} cases");
    assert_eq!(store.latest().unwrap().checkpoint.unwrap().step(), 2, "restored");
}

#[test]
fn a_manifest_cannot_point_outside_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 0);
    save(&store, 1, 4);
    let path = store.path_of(1).join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap().replace("state.json", "../state.json");
    fs::write(&path, text).unwrap();
    let error = Checkpoint::open(store.path_of(1)).unwrap_err();
    assert_eq!(error.message(), "the manifest names a file outside the checkpoint");
}

#[test]
fn a_run_that_went_back_replaces_what_lay_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 1);
    save(&store, 10, 10);
    let newest = CheckpointStore::open(&store.root, 0).unwrap();
    save(&newest, 20, 10);
    fs::remove_file(store.path_of(20).join(STATE)).unwrap();
    assert_eq!(store.latest().unwrap().checkpoint.unwrap().step(), 10);
    save(&store, 15, 10);
    assert_eq!(store.steps().unwrap(), [15], "the damaged one does not push out the good one");
    // Over a damaged one of the same step.
    fs::remove_file(store.path_of(15).join(STATE)).unwrap();
    save(&store, 15, 10);
    assert_whole(&store.latest().unwrap().checkpoint.unwrap(), 10);
    assert_eq!(store.names().unwrap(), ["step-15"]);
}

#[test]
fn a_replacement_cut_short_between_its_renames_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 0);
    save(&store, 5, 10);
    let aside = temporary_beside(&store.path_of(5).with_added_extension(&ASIDE[1..]));
    fs::rename(store.path_of(5), &aside).unwrap();
    let store = CheckpointStore::open(&store.root, 0).unwrap();
    assert_whole(&store.latest().unwrap().checkpoint.unwrap(), 10);
    assert_eq!(store.names().unwrap(), ["step-5"]);
}

#[test]
fn names_that_are_not_checkpoints_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 1);
    for name in ["step-", "step-01", "step--1", "step-1x", "notes", "step-99999999999999999999"] {
        fs::create_dir_all(store.root.join(name)).unwrap();
    }
    save(&store, 3, 4);
    save(&store, 4, 4);
    assert_eq!(store.steps().unwrap(), [4]);
    assert_eq!(store.names().unwrap().len(), 7);
}

#[test]
fn a_state_that_json_cannot_hold_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 0);
    let state: BTreeMap<(u8, u8), u8> = [((1, 2), 3)].into();
    assert!(store.save(1, &[], &state).is_err());
    assert!(!store.root.exists());
}

/// A disk with room for `left` bytes.
struct Filling {
    file: File,
    left: Rc<Cell<usize>>,
}

impl Write for Filling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left.get());
        if count == 0 && !bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.left.set(self.left.get() - count);
        self.file.write(&bytes[..count])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for Filling {
    fn sync(&mut self) -> io::Result<()> {
        match self.left.get() {
            0 => Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => self.file.sync_all(),
        }
    }
}

#[test]
fn a_disk_that_fills_at_any_byte_keeps_the_previous_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, 1);
    save(&store, 1, 40);
    let mut failures = 0;
    for room in (0..).step_by(17) {
        let left = Rc::new(Cell::new(room));
        let saved = save_through(&store, 2, 40, &|path| {
            Ok(Box::new(Filling { file: File::create_new(path)?, left: left.clone() }))
        });
        let Err(error) = saved else { break };
        failures += 1;
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().starts_with("cannot write"), "{error}");
        let hint = error.remedy().unwrap();
        assert_eq!(hint, "free some space and `--resume`: `step-1` is intact");
        assert_eq!(store.names().unwrap(), ["step-1"], "no leftover with room for {room}");
        assert_whole(&store.latest().unwrap().checkpoint.unwrap(), 40);
    }
    assert!(failures > 40, "only {failures} cases");
    assert_whole(&store.latest().unwrap().checkpoint.unwrap(), 40);
    assert_eq!(store.names().unwrap(), ["step-2"]);
}

/// About 4 MB in all, so that a kill falls into a write as often as between two.
const LARGE: usize = 500_000;

/// Not a test by itself: goes on from the newest checkpoint, saving one after another, until it
/// is killed.
#[test]
fn helper_that_saves_until_killed() {
    let Some(root) = std::env::var_os("HALTER_TEST_SAVE_UNTIL_KILLED") else { return };
    let store = CheckpointStore::open(PathBuf::from(root), 2).unwrap();
    let found = store.latest().unwrap();
    let mut step = found.checkpoint.map_or(0, |checkpoint| checkpoint.step());
    loop {
        step += 1;
        save(&store, step, LARGE);
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("checkpoints");
    let (mut reached, mut torn) = (0, 0);
    for round in 0..30u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::checkpoint::tests::helper_that_saves_until_killed"])
            .env("HALTER_TEST_SAVE_UNTIL_KILLED", &root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over start-up, cleaning, writing, renaming and removal.
        std::thread::sleep(Duration::from_micros(20_000 + (round * 7_919) % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let untouched = CheckpointStore { root: root.clone(), keep_last: 2 };
        torn += untouched.names().unwrap().iter().any(|name| is_temporary(name)) as usize;
        let store = CheckpointStore::open(&root, 2).unwrap();
        let found = store.latest().unwrap();
        assert_eq!(found.notices, Vec::<String>::new(), "round {round}");
        assert!(store.names().unwrap().iter().all(|name| step_of(name).is_some()));
        let Some(checkpoint) = found.checkpoint else {
            assert_eq!(reached, 0, "round {round} lost every checkpoint");
            continue;
        };
        assert!(checkpoint.step() >= reached, "round {round} went back");
        reached = checkpoint.step();
        assert_whole(&checkpoint, LARGE);
    }
    assert!(reached > 0, "no checkpoint was ever written");
    println!("30 kills: step {reached} reached, {torn} kills left a temporary");
    assert!(torn > 0, "no kill fell into a write: the test shows nothing");
}
