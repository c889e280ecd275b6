use super::*;

/// Every `(step, tag, value)` of a directory, read by code of its own, and how many records are
/// whole.
fn scalars(directory: &Path) -> Vec<(u64, String, f32)> {
    let mut scalars = Vec::new();
    for path in event_files(directory).unwrap() {
        let bytes = fs::read(path).unwrap();
        let mut at = 0;
        while let Some((event, end)) = record_at(&bytes, at) {
            at = end;
            let Some(Raw::Bytes(mut summary)) = field_of(event, 5) else { continue };
            while !summary.is_empty() {
                assert_eq!(summary[0], 0x0a);
                let length = summary[1] as usize;
                assert!(length < 128, "one byte of length in these tests");
                let (value, rest) = summary[2..].split_at(length);
                let Some(Raw::Bytes(tag)) = field_of(value, 1) else { panic!("no tag") };
                let Some(Raw::Bytes(number)) = field_of(value, 2) else { panic!("no value") };
                scalars.push((
                    step_of(event),
                    String::from_utf8(tag.to_vec()).unwrap(),
                    f32::from_le_bytes(number.try_into().unwrap()),
                ));
                summary = rest;
            }
        }
        assert_eq!(at, bytes.len(), "a record is damaged");
    }
    scalars
}

fn metrics(step: u64) -> StepMetrics {
    StepMetrics { step, loss: Some(step as f64 / 2.0), ..StepMetrics::default() }
}

fn loss_steps(directory: &Path) -> Vec<u64> {
    let scalars = scalars(directory).into_iter();
    scalars.filter(|(_, tag, _)| tag == "train/loss").map(|(step, _, _)| step).collect()
}

#[test]
fn the_sum_is_castagnoli() {
    // The check value of CRC-32C in every catalogue of them.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn records_equal_those_of_the_tensorboard_package() {
    // Written by oracle/tensorboard_events.py.
    let golden = include_bytes!("../../../oracle/golden/tensorboard.events");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let mut writer = TensorboardWriter { file: File::create(&path).unwrap(), path };
    let scalars = [("train/loss".to_string(), 1.25f32), ("eval/loss".to_string(), f32::NAN)];
    let long = [(format!("train/{}", "x".repeat(200)), -0.5f32)];
    for (step, payload) in [
        (0, Payload::FileVersion("brain.Event:2")),
        (5, Payload::SessionStart),
        (5, Payload::Scalars(&scalars)),
        (1 << 40, Payload::Scalars(&long)),
    ] {
        writer.record(&event(1234.5, step, &payload)).unwrap();
    }
    let bytes = fs::read(&writer.path).unwrap();
    assert_eq!(bytes, golden);
}

#[test]
fn metrics_come_back_under_their_tags() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = TensorboardWriter::create(dir.path()).unwrap();
    let mut metrics = metrics(3);
    metrics.num_tokens = Some(300);
    metrics.extra = [("eval/loss".to_string(), 2.5), ("rewards/margins".to_string(), -1.0)].into();
    writer.write(&metrics).unwrap();
    let expected = [
        ("train/epoch", 0.0),
        ("train/loss", 1.5),
        ("train/num_tokens", 300.0),
        ("eval/loss", 2.5),
        ("train/rewards/margins", -1.0),
    ];
    let expected = expected.map(|(tag, value)| (3, tag.to_string(), value));
    assert_eq!(scalars(dir.path()), expected);
}

#[test]
fn a_resumed_run_has_every_step_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = TensorboardWriter::create(dir.path()).unwrap();
    (1..=7).for_each(|step| writer.write(&metrics(step)).unwrap());
    // Twice within a second, from step 4 and then from step 5.
    let mut writer = TensorboardWriter::resume(dir.path(), 4).unwrap();
    (5..=6).for_each(|step| writer.write(&metrics(step)).unwrap());
    let mut writer = TensorboardWriter::resume(dir.path(), 5).unwrap();
    (6..=9).for_each(|step| writer.write(&metrics(step)).unwrap());
    assert_eq!(loss_steps(dir.path()), (1..=9).collect::<Vec<_>>());
    assert_eq!(event_files(dir.path()).unwrap().len(), 3);
    // For `oracle/tensorboard_events.py read DIR`.
    if let Some(kept) = std::env::var_os("HALTER_TEST_EVENTS") {
        for path in event_files(dir.path()).unwrap() {
            fs::copy(&path, Path::new(&kept).join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn a_file_cut_anywhere_resumes_to_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = TensorboardWriter::create(dir.path()).unwrap();
    (1..=3).for_each(|step| writer.write(&metrics(step)).unwrap());
    let whole = fs::read(&writer.path).unwrap();
    let mut most = 0;
    for cut in 0..whole.len() {
        fs::write(&writer.path, &whole[..cut]).unwrap();
        let resumed = TensorboardWriter::resume(dir.path(), 2).unwrap();
        let steps = loss_steps(dir.path());
        assert!(steps.iter().eq([1, 2].iter().take(steps.len())), "{cut}: {steps:?}");
        most = most.max(steps.len());
        fs::remove_file(&resumed.path).unwrap();
    }
    assert_eq!(most, 2);
}

#[test]
fn other_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["notes.txt", "events.out.tfevents.x.host", "events.out.tfevents."] {
        fs::write(dir.path().join(name), b"keep").unwrap();
    }
    TensorboardWriter::resume(dir.path(), 0).unwrap();
    assert_eq!(fs::read(dir.path().join("notes.txt")).unwrap(), b"keep");
    assert_eq!(fs::read(dir.path().join("events.out.tfevents.x.host")).unwrap(), b"keep");
}
