//! Every bound and timing of the transport, with its reason.

use std::time::Duration;

/// What all addresses of a node together take at a time. Below the file descriptor limit that systems start with,
/// and at a few dozen KiB each a bound on memory.
pub const MAX_CONNECTIONS: usize = 1024;

/// Connections from one peer at a time. Two are ordinary (both ends dial at once, a relayed one gives way to a direct
/// one); the swarm above keeps four.
pub const MAX_CONNECTIONS_PER_PEER: usize = 8;

/// Connections that are proved and wait to be accepted from above.
pub const MAX_WAITING_CONNECTIONS: usize = 64;

/// Unproved inbound connections at a time: some ten per millisecond of proving are well served.
pub const MAX_HANDSHAKES: usize = 256;

/// With so many handshakes under way, newcomers first show that their address is theirs (a stateless retry): a flood
/// from forged addresses then takes no memory.
pub const RETRY_ABOVE_HANDSHAKES: usize = 32;

/// What proving who is who may take, both ways.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Streams that one peer may have open over one connection.
pub const MAX_STREAMS: u32 = 512;

/// A connection says that it lives when it has been silent for so long: four times within [`IDLE_TIME`], so that one
/// lost packet in a hundred ends none.
pub const KEEP_ALIVE_TIME: Duration = Duration::from_millis(350);

/// A peer from which nothing has come for so long is gone. Our own next keep-alive starts the time anew, once: together
/// they are under the two seconds in which a dead peer is to be noticed.
pub const IDLE_TIME: Duration = Duration::from_millis(1550);

/// The round trip taken for granted before it is measured. The default of 333 ms makes the first packet's loss cost a
/// second, which nobody who punches a hole can wait for; on longer paths it costs one packet sent twice.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);

/// What a stream may have under way or unread: 1 Gbit/s over 100 ms are 12.5 MB.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// The same for all streams of a connection together, so that one stalled reader leaves room for others. It is also
/// what a hostile peer can make us hold.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// What we hold for the other end until it is acknowledged.
pub const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// The largest datagram looked for on the way to another machine: Ethernet's less IPv6 and UDP.
pub const MAX_UDP_PAYLOAD_BYTES: u16 = 1452;

/// The same within this machine, whose loopback takes 64 KiB: ten of these in one system call, which is what quinn
/// sends at a time, must fit that. With larger ones connections hang.
pub const NEAR_UDP_PAYLOAD_BYTES: u16 = 6500;

/// What the kernel is asked to hold for a socket in each direction; it takes what it allows.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Datagrams held in each direction of a connection: pings only, so a few.
pub const DATAGRAM_BUFFER_BYTES: usize = 16 << 10;

/// Pings of one connection that wait for their answer.
pub const MAX_PINGS: usize = 16;

/// One call hands the connection no more than this, so that its lock is free again soon for packets that come.
pub const MAX_WRITE_BYTES: usize = 256 << 10;

/// A datagram that opens a hole in a NAT carries so many random bytes (libp2p's DCUtR over QUIC).
pub const PUNCH_BYTES: usize = 64;

/// Longest time between two such datagrams; the specification wants 10 to 200 ms, at random.
pub const PUNCH_PAUSE: std::ops::Range<u64> = 10..200;

/// Longest run of punching that is done on one call.
pub const MAX_PUNCH_TIME: Duration = Duration::from_secs(10);

/// How long a closing node waits for its last packets to leave; who does not get them notices after [`IDLE_TIME`].
pub const CLOSE_TIME: Duration = Duration::from_millis(5);

/// How long to wait before accepting again when the system has no file descriptor left.
pub const ACCEPT_RETRY_TIME: Duration = Duration::from_millis(100);

/// Data of a TCP connection that is not acknowledged for so long ends it.
pub const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(8);

/// An idle TCP connection is probed by the kernel after so long …
pub const TCP_PROBE_AFTER: Duration = Duration::from_secs(10);

/// … so often …
pub const TCP_PROBE_EVERY: Duration = Duration::from_secs(3);

/// … and ends when so many probes have no answer.
pub const TCP_PROBES: u32 = 3;

/// The heartbeat of a yamux connection.
pub const TICK: Duration = Duration::from_secs(1);

/// With streams open and nothing heard for so many ticks, the other end is asked for a sign of life …
pub const PING_AFTER_TICKS: u32 = 2;

/// … and given up after so many: on a slow link an answer stands behind a backlog of other bytes.
pub const SILENT_TICKS: u32 = 6;

/// A yamux stream that we have closed waits so many ticks for the other end to close it, too; then it is reset.
pub const LINGER_TICKS: u32 = 5;

/// Inbound yamux streams that nobody has taken up yet.
pub const MAX_WAITING_STREAMS: usize = 256;

/// Sealed bytes that the kernel has not taken; above it writers wait.
pub const MAX_BACKLOG_BYTES: usize = 256 << 10;

/// What may pile up beyond that because the other end makes us answer and does not read; then it is cut off.
pub const MAX_REPLY_BYTES: usize = 1 << 20;

/// Answers that one read may call for: as many as its bytes hold frames, rounded up.
pub const MAX_REPLIES: usize = 32 << 10;

/// A buffer larger than this is given back when it is empty.
pub const KEPT_BYTES: usize = 64 << 10;

/// What one read takes from a socket.
pub const READ_BYTES: usize = 256 << 10;

/// Reads of one connection before it is the others' turn.
pub const READS_IN_A_ROW: usize = 8;

/// How long the other end may take to hang up after our good-bye.
pub const LEAVE_TIME: Duration = Duration::from_millis(200);
