"""The ExLlamaV2 engine."""
