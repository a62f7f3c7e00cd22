"""Spans, ends, caches, checkpoints and sampling, on torch and transformers. Knows no network."""
