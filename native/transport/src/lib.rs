//! The transport of swarmnode: libp2p connections and streams, polled from outside the runtime. Knows no Python.
