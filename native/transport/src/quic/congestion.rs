//! How much a connection may have under way: what the path was seen to deliver in a round trip, and a little more.
//!
//! Loss alone says little on the Internet, so the window follows the rate at which data is acknowledged (as BBR's does), not
//! losses (as Cubic's does). Unlike quinn's BBR it never asks for twice of what the path holds: quinn paces by the window, so that
//! would be a queue, or loss, for everybody on the link. Knows no sockets and no clock; `now` is an argument.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};

/// What is sent before anything is known of the path: at 20 Mbit/s it takes 50 ms to pass.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;
/// So many datagrams are always allowed, else nothing would ever be learnt.
const LEAST_DATAGRAMS: u64 = 4;
/// No window is larger; what a stream may have under way is far less.
const MOST_WINDOW_BYTES: u64 = 256 << 20;
/// What the two ends' timers and threads may be late by, in time at the measured rate: a window for the round trip alone would
/// starve short paths. It is also the queue that we make at worst.
const SLACK: Duration = Duration::from_millis(4);
/// On a path as short as this, what a round trip takes is mostly the waiting of threads for a CPU, and the narrowest place is the
/// other end's socket buffer: there losses tell the truth and cost little, and Cubic decides.
const SHORT_PATH: Duration = Duration::from_millis(2);
/// The window's parts of what the path holds, one after another for a round each: ask for more, empty the queue that this made,
/// then keep still.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// The rate is the largest of so many rounds: one cycle and a bit.
const RATE_ROUNDS: usize = 10;
/// The shortest round trip is the shortest of so long; paths change. Each cycle empties the queue in between.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(10);
/// While starting, the window doubles in each round up to here, and grows by a quarter beyond. On a fast long link the last
/// doubling would overshoot by thousands of datagrams; quinn's receiver gives a stream up that has 1,024 gaps.
const DOUBLES_BELOW_BYTES: u64 = 2 << 20;
/// Starting is over when the rate has grown by less than this in each of [`STALE_ROUNDS`] rounds,
const GROWTH: f64 = 1.1;
const STALE_ROUNDS: u32 = 2;
/// or when so many datagrams in a row were later than the shortest round trip by a sixteenth and this,
const LATE_DATAGRAMS: u32 = 16;
const LATE: Duration = Duration::from_millis(4);
/// or when more than this part of a round was lost, and not just a few datagrams.
const START_LOSS: f64 = 0.02;
const START_LOST_DATAGRAMS: u64 = 8;
/// More loss than this in a round is our own doing: the rate is then what was delivered in it.
const OWN_LOSS: f64 = 0.1;

/// Makes the controllers of connections.
#[derive(Debug, Default)]
pub struct SteadyConfig;

impl ControllerFactory for SteadyConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW_BYTES);
        let short = Arc::new(cubic).build(now, current_mtu);
        Box::new(Steady { rate: Rate::new(now, current_mtu), short })
    }
}

/// The controller of one path.
pub(super) struct Steady {
    rate: Rate,
    /// For as long as the path is short.
    short: Box<dyn Controller>,
}

/// What the path was seen to deliver.
#[derive(Clone, Debug)]
struct Rate {
    mtu: u64,
    window: u64,
    starting: bool,
    /// Bytes a second in the last rounds that were not short of data; the newest at `rates[rounds % RATE_ROUNDS]`.
    rates: [f64; RATE_ROUNDS],
    rounds: usize,
    /// Where in [`CYCLE`] this round is.
    phase: usize,
    late_datagrams: u32,
    stale_rounds: u32,
    best_start_rate: f64,
    /// The shortest round trip of this age and of the one before.
    shortest: Duration,
    shortest_before: Duration,
    age_began: Instant,
    round: Round,
    newest_sent: u64,
    delivered: u64,
}

/// From a datagram's sending to its acknowledgement.
#[derive(Clone, Debug)]
struct Round {
    began: Instant,
    until: u64,
    delivered_before: u64,
    lost: u64,
    app_limited: bool,
}

impl Rate {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            window: INITIAL_WINDOW_BYTES,
            starting: true,
            rates: [0.0; RATE_ROUNDS],
            rounds: 0,
            phase: 0,
            late_datagrams: 0,
            stale_rounds: 0,
            best_start_rate: 0.0,
            shortest: Duration::MAX,
            shortest_before: Duration::MAX,
            age_began: now,
            round: Round::new(now, 0, 0),
            newest_sent: 0,
            delivered: 0,
        }
    }

    fn least(&self) -> u64 {
        LEAST_DATAGRAMS * self.mtu
    }

    fn shortest_round_trip(&self) -> Duration {
        self.shortest.min(self.shortest_before)
    }

    fn lost_much(&self, part: f64, bytes: u64) -> bool {
        part > START_LOSS && bytes > START_LOST_DATAGRAMS * self.mtu
    }

    fn end_round(&mut self, now: Instant) {
        let next = Round::new(now, self.newest_sent, self.delivered);
        let round = std::mem::replace(&mut self.round, next);
        let delivered = self.delivered - round.delivered_before;
        let seconds = (now - round.began).as_secs_f64().max(1e-6);
        let rate = delivered as f64 / seconds;
        let lost = round.lost as f64 / (round.lost + delivered).max(1) as f64;
        let best = self.rates.iter().copied().fold(0.0, f64::max);
        if round.app_limited && (self.starting || rate <= best) {
            return; // it tells of what we had to send, not of the path
        }
        self.rounds = self.rounds.wrapping_add(1);
        if let Some(slot) = self.rates.get_mut(self.rounds % RATE_ROUNDS) {
            *slot = rate;
        }
        if self.starting {
            self.stale_rounds = if rate > self.best_start_rate * GROWTH { 0 } else { self.stale_rounds + 1 };
            self.best_start_rate = self.best_start_rate.max(rate);
            self.starting = self.stale_rounds < STALE_ROUNDS
                && self.late_datagrams < LATE_DATAGRAMS
                && !self.lost_much(lost, round.lost);
            self.phase = usize::from(!self.starting); // what follows is to empty the queue
        } else if self.phase == 0 && rate > best * GROWTH {
            // whoever asked for more and got it asks again
        } else {
            self.phase = (self.phase + 1) % CYCLE.len();
        }
        if !self.starting && lost > OWN_LOSS {
            self.rates = [rate; RATE_ROUNDS];
        }
        self.follow();
    }

    fn is_short(&self) -> bool {
        self.shortest_round_trip() < SHORT_PATH
    }

    /// The window for the next round.
    fn follow(&mut self) {
        if self.starting {
            return;
        }
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let part = CYCLE.get(self.phase).copied().unwrap_or(1.0);
        let holds = rate * (self.shortest_round_trip().as_secs_f64() * part + SLACK.as_secs_f64());
        self.window = (holds as u64).clamp(self.least(), MOST_WINDOW_BYTES);
    }
}

impl Steady {
    /// Bytes a second that the path was seen to deliver while we had more to send; `None` before that is clear.
    pub(super) fn delivers(controller: Box<dyn Controller>) -> Option<u64> {
        let steady = controller.into_any().downcast::<Self>().ok()?;
        let best = steady.rate.rates.iter().copied().fold(0.0, f64::max);
        (!steady.rate.starting && best > 0.0).then_some(best as u64)
    }
}

impl Round {
    fn new(began: Instant, until: u64, delivered_before: u64) -> Self {
        Self { began, until, delivered_before, lost: 0, app_limited: false }
    }
}

impl Rate {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        self.delivered += bytes;
        self.round.app_limited |= app_limited;
        let round_trip = now.saturating_duration_since(sent);
        if now.saturating_duration_since(self.age_began) > ROUND_TRIP_AGE {
            self.shortest_before = self.shortest;
            self.shortest = round_trip;
            self.age_began = now;
        }
        self.shortest = self.shortest.min(round_trip);
        if !self.starting {
            return;
        }
        let shortest = self.shortest_round_trip();
        let late = !self.is_short() && round_trip > shortest + shortest / 16 + LATE;
        self.late_datagrams = if late { self.late_datagrams + 1 } else { 0 };
        if !app_limited {
            let more = if self.window < DOUBLES_BELOW_BYTES { bytes } else { bytes / 4 };
            self.window = (self.window + more).min(MOST_WINDOW_BYTES);
        }
    }

    fn on_end_acks(&mut self, now: Instant, largest_packet_num_acked: Option<u64>) {
        let over = largest_packet_num_acked.is_some_and(|number| number >= self.round.until);
        let late = self.starting && self.late_datagrams >= LATE_DATAGRAMS && !self.round.app_limited;
        if over || late {
            self.end_round(now);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.round.lost += lost_bytes;
        if is_persistent_congestion {
            // Nothing came through for long: the path is another one now, or full to the brim.
            let mtu = u16::try_from(self.mtu).unwrap_or(u16::MAX);
            let (newest_sent, delivered) = (self.newest_sent, self.delivered);
            *self = Self {
                newest_sent,
                delivered,
                round: Round::new(now, newest_sent, delivered),
                ..Self::new(now, mtu)
            };
            self.window = self.least();
        } else if self.starting {
            let delivered = self.delivered - self.round.delivered_before;
            let part = self.round.lost as f64 / (self.round.lost + delivered).max(self.window / 4) as f64;
            if self.lost_much(part, self.round.lost) {
                self.end_round(now); // not a round trip later
            }
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(self.least());
    }
}

impl Controller for Steady {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.rate.newest_sent = last_packet_number;
        self.short.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.rate.on_ack(now, sent, bytes, app_limited);
        self.short.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.rate.on_end_acks(now, largest);
        self.short.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.rate.on_congestion_event(now, persistent, lost_bytes);
        self.short.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.rate.on_mtu_update(new_mtu);
        self.short.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.rate.is_short() { self.short.window() } else { self.rate.window }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { rate: self.rate.clone(), short: self.short.clone_box() })
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
