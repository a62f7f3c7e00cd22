"""The serving side: a span of blocks offered to whoever asks. Knows no client code."""
