//! Weights in and out: safetensors, GGUF, a hub, and the export.
