"""SmolLM2-135M-Instruct from the fetched GGUF file to a Hugging Face folder in f32.

    scripts/fetch-assets smollm2
    python oracle/smollm2_convert.py        # writes $HALTER_ASSETS/smollm2-f32/

The folder is the reference for everything run on real weights. Its numbers are the *dequantised*
Q4_1 weights, so it must agree with the GGUF file to the bit, not with the published bf16 model.
transformers undoes the Q/K row permutation of GGUF's `llama` architecture; the greedy answer at the
end would be noise if it had not, and the script fails then.
"""

import shutil
import sys

from common import assets, need
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def clean_config(loaded):
    """The configuration as the published checkpoint has it, without the GGUF loader's marks."""
    fields = loaded.to_dict()
    for field in ("quantization_config", "_name_or_path", "transformers_version"):
        fields.pop(field, None)
    # GGUF stores the epsilon as f32: 9.99999974e-06.
    fields["rms_norm_eps"] = 1e-5
    fields.update(bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True)
    return LlamaConfig(**fields)


def smollm_pre_tokenizer():
    """What GGUF calls `smollm`: each digit alone, then GPT-2's split.

    transformers' GGUF reader ignores `tokenizer.ggml.pre` and would leave out the digits, so that
    `2023` became one token, which the model has hardly seen.
    """
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def main():
    source, target = assets("smollm2"), assets("smollm2-f32")
    need(source / GGUF, "scripts/fetch-assets smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = smollm_pre_tokenizer()
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # A model that came from a GGUF file counts as quantized and refuses to be saved: put its
    # weights into a fresh one.
    model = LlamaForCausalLM(clean_config(loaded.config))
    model.load_state_dict({k: v.detach().float().clone() for k, v in loaded.state_dict().items()})
    model.tie_weights()
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 2

    staged = target.with_name(".smollm2-f32.staged")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    check(staged)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    print(f"wrote {target}")


def check(folder):
    """The saved folder answers a question, and holds one matrix for embedding and head."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    digits = tokenizer("2023")["input_ids"]
    if len(digits) != 4:
        sys.exit(f"`2023` became {len(digits)} token(s), expected 4")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    print(f"{sum(p.numel() for p in model.parameters())} parameters; {answer!r}")
    if "Paris" not in answer:
        sys.exit("the converted model does not know the capital of France: weights are wrong")


if __name__ == "__main__":
    main()
