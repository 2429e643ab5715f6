"""The default runner: any attention-only Hugging Face decoder, in this process, on CPU or one GPU."""
