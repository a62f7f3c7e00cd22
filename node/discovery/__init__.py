"""Who serves what: signed records announced to, kept by and found at the peers closest to a key."""
