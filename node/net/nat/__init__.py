"""Peers that cannot be dialled: relays, knowing that one is needed, and punching through to a direct connection."""
