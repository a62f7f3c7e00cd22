"""The node: trio and libp2p around the models and protocols rooms. Everything that acts is here."""
