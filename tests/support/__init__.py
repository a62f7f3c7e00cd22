"""What several tests use: real programs, tiny models, counting."""
