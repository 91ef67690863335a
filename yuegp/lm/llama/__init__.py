"""The torch engine: a Llama of our own."""
