"""The network: streams to authenticated peers, over libp2p or inside one process. Knows no model and no record."""
