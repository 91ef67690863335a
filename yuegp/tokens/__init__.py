"""The vocabulary, the tokenizer and the prompts of a song."""
