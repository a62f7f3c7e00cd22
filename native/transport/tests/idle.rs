//! Connections over days that pass in seconds: kept alive while idle, noticed when dead, forgotten when closed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod simulated;

use std::sync::Mutex;
use std::time::Duration;

use quinn_proto::{IdleTimeout, TransportConfig, VarInt};
use simulated::{Link, Pair};
use swarmnode_transport::limits;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What a day's packets may leave behind in this process: nothing, but allocators keep some.
const MOST_GROWTH_BYTES: usize = 4 << 20;

/// As `quic/config.rs` sets idle connections up.
fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(limits::IDLE_TIME).unwrap()))
        .keep_alive_interval(Some(limits::KEEP_ALIVE_TIME));
    config
}

fn link(loss: f64) -> Link {
    Link { round_trip: Duration::from_millis(100), bits_per_second: 2e7, queue_bytes: 50_000.0, loss }
}

/// What this process has in memory; 0 where nobody tells.
fn resident_bytes() -> usize {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// One test at a time: what each takes is measured.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn an_idle_connection_lives_for_a_day_and_takes_no_more_memory() {
    let _alone = ALONE.lock();
    let mut pair = Pair::new(link(0.01), transport(), 3);
    let handle = pair.connect(transport());
    pair.wait(HOUR / 4);
    let before = resident_bytes();
    let (sent_before, _) = pair.sent_and_dropped();
    pair.wait(DAY);
    assert!(pair.client.lost.is_empty() && pair.server.lost.is_empty(), "{:?}", pair.client.lost);
    assert_eq!((pair.client.connections.len(), pair.server.connections.len()), (1, 1));
    assert!(!pair.client.connections[&handle].is_closed());
    let (sent, _) = pair.sent_and_dropped();
    let most = 4 * DAY.as_millis() / limits::KEEP_ALIVE_TIME.as_millis();
    assert!(u128::from(sent - sent_before) < most, "{} packets", sent - sent_before);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < MOST_GROWTH_BYTES, "{grown} bytes more than before");
}

#[test]
fn a_dead_peer_is_noticed_in_less_than_two_seconds() {
    let _alone = ALONE.lock();
    let mut pair = Pair::new(link(0.0), transport(), 4);
    pair.connect(transport());
    pair.wait(Duration::from_secs(60));
    pair.cut = true;
    let began = pair.now;
    while (pair.client.lost.is_empty() || pair.server.lost.is_empty()) && pair.step() {}
    assert!(!pair.client.lost.is_empty() && !pair.server.lost.is_empty());
    let took = pair.now - began;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn closed_connections_leave_nothing_in_the_endpoints() {
    let _alone = ALONE.lock();
    let mut pair = Pair::new(link(0.0), transport(), 5);
    for _ in 0..200 {
        let handle = pair.connect(transport());
        pair.wait(Duration::from_millis(300));
        let now = pair.now;
        let connection = pair.client.connections.get_mut(&handle).unwrap();
        assert!(!connection.is_handshaking());
        connection.close(now, VarInt::from_u32(0), bytes::Bytes::new());
    }
    pair.wait(Duration::from_secs(10));
    assert_eq!((pair.client.connections.len(), pair.server.connections.len()), (0, 0));
    assert_eq!((pair.client.endpoint.open_connections(), pair.server.endpoint.open_connections()), (0, 0));
}
