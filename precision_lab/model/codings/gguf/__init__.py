"""The block formats of GGUF files, under ggml's names."""
