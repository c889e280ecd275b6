//! Whatever bytes a `.gguf` file holds, reading it ends in a model or an error.

#![no_main]

use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::gguf::Gguf;
use halter_core::text::gguf_tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec()) else { return };
    for tensor in gguf.tensors() {
        // A tensor is no larger than 256 / 18 times its bytes once it is widened.
        if let Ok(stored) = gguf.stored(&tensor.name) {
            let _ = stored.check_finite();
        }
    }
    let _ = gguf_tokenizer::from_gguf(&gguf);
    let Ok(config) = gguf.model_config() else { return };
    let Ok(files) = WeightFiles::from_gguf(gguf) else { return };
    if files.check(&config).is_ok() {
        let _ = files.check_finite();
    }
});
