"""What peers say: ids, frames, messages, records. Knows no torch, no libp2p, no clock."""
