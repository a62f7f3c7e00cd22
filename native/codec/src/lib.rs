//! The codec of swarmnode: activations and gradients as few bytes. Knows no Python, no network.
