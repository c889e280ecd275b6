//! What is read equals what was stored, for every type and order.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use halter_core::model::weights::{RowOrder, StoredKind, StoredTensor, WeightFiles};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fixtures::{GgufBuilder, le_bytes, safetensors};

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-3.0..3.0)).collect()
}

const QUANTIZED: [(GgmlDType, u32); 12] = [
    (GgmlDType::Q4_0, 2),
    (GgmlDType::Q4_1, 3),
    (GgmlDType::Q5_0, 6),
    (GgmlDType::Q5_1, 7),
    (GgmlDType::Q8_0, 8),
    (GgmlDType::Q8_1, 9),
    (GgmlDType::Q2K, 10),
    (GgmlDType::Q3K, 11),
    (GgmlDType::Q4K, 12),
    (GgmlDType::Q5K, 13),
    (GgmlDType::Q6K, 14),
    (GgmlDType::Q8K, 15),
];

#[test]
fn every_quantized_type_reads_as_candle_dequantizes_it() {
    for (dtype, _) in QUANTIZED {
        // Large enough for several threads, and rows that are no multiple of a task.
        let (rows, row_len) = (96, 768);
        let source = Tensor::from_vec(random(rows * row_len, 7), (rows, row_len), &Device::Cpu);
        let quantized = QTensor::quantize(&source.unwrap(), dtype).unwrap();
        let expected = quantized.dequantize(&Device::Cpu).unwrap();
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = quantized.data().unwrap().to_vec();
        let kind = StoredKind::Ggml(dtype);
        let stored = StoredTensor::from_bytes("w", &[rows, row_len], kind, bytes).unwrap();
        assert_eq!(stored.to_vec().unwrap(), expected, "{dtype:?}");
        let mut some = vec![0.0; 3 * row_len];
        stored.read_rows_into(5..8, &mut some).unwrap();
        assert_eq!(some, expected[5 * row_len..8 * row_len], "{dtype:?}");
    }
}

#[test]
fn quantized_blocks_at_odd_addresses_read_the_same() {
    for (dtype, id) in QUANTIZED {
        let source = Tensor::from_vec(random(10 * 256, 3), (10, 256), &Device::Cpu).unwrap();
        let quantized = QTensor::quantize(&source, dtype).unwrap();
        let bytes = quantized.data().unwrap().to_vec();
        let kind = StoredKind::Ggml(dtype);
        let expected = StoredTensor::from_bytes("w", &[10, 256], kind, bytes.clone()).unwrap();
        // An alignment of one puts the tensor wherever the header ends.
        for filler in ["", "x", "xy", "xyz"] {
            let mut builder = GgufBuilder::new();
            builder.u32("general.alignment", 1).string("filler", filler);
            builder.tensor("token_embd.weight", &[10, 256], id, &bytes);
            let mut file = builder.build();
            // The builder aligns to 32; take the padding out again.
            let header = file.len() - builder.data.len();
            let unpadded = header_end(&builder);
            file.drain(unpadded..header);
            let gguf = halter_core::model::weights::gguf::Gguf::from_bytes(file).unwrap();
            let read = gguf.stored("token_embd.weight").unwrap();
            assert_eq!(read.to_vec().unwrap(), expected.to_vec().unwrap(), "{dtype:?} {filler}");
        }
    }
}

fn header_end(builder: &GgufBuilder) -> usize {
    let entries: usize = builder.entries.iter().map(Vec::len).sum();
    let tensors: usize =
        builder.tensors.iter().map(|(n, d, ..)| 8 + n.len() + 4 + 8 * d.len() + 12).sum();
    24 + entries + tensors
}

#[test]
fn plain_types_widen_exactly() {
    let values = random(70_000, 11);
    let tensor = Tensor::from_vec(values.clone(), (70, 1000), &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let narrow = tensor.to_dtype(dtype).unwrap();
        let expected = narrow.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let stored = StoredTensor::from_tensor("w", &narrow).unwrap();
        assert_eq!(stored.to_vec().unwrap(), expected.to_vec1::<f32>().unwrap(), "{dtype:?}");
        assert_eq!(stored.to_tensor(&Device::Cpu).unwrap().dims(), [70, 1000]);
        // At an odd address, through a file whose header has an odd length.
        let name = format!("{dtype:?}");
        for pad in ["", " ", "  "] {
            let size = stored.bytes().len();
            let header = format!(
                r#"{{"w":{{"dtype":"{name}","shape":[70,1000],"data_offsets":[0,{size}]}}}}{pad}"#
            );
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.safetensors");
            std::fs::write(&path, safetensors(&header, stored.bytes())).unwrap();
            let read = WeightFiles::open(&path).unwrap().get("w").unwrap();
            assert_eq!(read.to_vec().unwrap(), stored.to_vec().unwrap(), "{name}");
        }
    }
}

#[test]
fn special_floats_survive_widening() {
    let bits: Vec<u16> = vec![0x0000, 0x8000, 0x7f80, 0xff80, 0x0001, 0x7f7f];
    let bytes = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    let stored = StoredTensor::from_bytes("w", &[6], StoredKind::BF16, bytes).unwrap();
    let expected: Vec<u32> = bits.iter().map(|&b| u32::from(b) << 16).collect();
    let read: Vec<u32> = stored.to_vec().unwrap().iter().map(|v| v.to_bits()).collect();
    assert_eq!(read, expected);
    assert!(stored.check_finite().is_err());
}

#[test]
fn one_thread_reads_what_many_read() {
    let stored = StoredTensor::from_f32("w", &[300, 1000], &random(300_000, 5)).unwrap();
    let read = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| stored.to_vec().unwrap())
    };
    assert_eq!(read(1), read(4));
}

#[test]
fn rows_outside_or_a_buffer_of_the_wrong_length_are_refused() {
    let stored = StoredTensor::from_f32("w", &[4, 2], &[0.0; 8]).unwrap();
    let (start, end) = (3, 2);
    for (rows, len) in [(0..5, 10), (start..end, 0), (0..2, 3), (4..5, 2)] {
        assert!(stored.read_rows_into(rows.clone(), &mut vec![0.0; len]).is_err(), "{rows:?}");
    }
    assert!(stored.read_rows_into(4..4, &mut []).is_ok());
}

#[test]
fn interleaved_rows_map_one_to_one() {
    let order = RowOrder::InterleavedHeads { head_dim: 8 };
    let rows: Vec<_> = (0..16).map(|row| order.stored_row(row)).collect();
    assert_eq!(rows, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
}

#[test]
fn a_tensor_from_memory_needs_exactly_its_bytes() {
    let bytes = le_bytes(&[1.0, 2.0, 3.0]);
    assert!(StoredTensor::from_bytes("w", &[3], StoredKind::F32, bytes.clone()).is_ok());
    assert!(StoredTensor::from_bytes("w", &[4], StoredKind::F32, bytes.clone()).is_err());
    assert!(StoredTensor::from_bytes("w", &[usize::MAX, 8], StoredKind::F32, bytes).is_err());
}
