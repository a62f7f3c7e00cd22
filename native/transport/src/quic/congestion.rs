//! How much a connection may have under way: what the path was seen to deliver in a round trip, and a little more.
//!
//! Loss alone says little on the Internet, so the window follows the rate at which data is acknowledged (as BBR's does), not
//! losses (as Cubic's does). Unlike quinn's BBR it never asks for twice of what the path holds: quinn paces by the window, so that
//! would be a queue, or loss, for everybody on the link. Knows no sockets and no clock; `now` is an argument.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory};

/// What is sent before anything is known of the path: at 20 Mbit/s it takes 50 ms to pass.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;
/// So many datagrams are always allowed, else nothing would ever be learnt.
const LEAST_DATAGRAMS: u64 = 4;
/// No window is larger; what a stream may have under way is far less.
const MOST_WINDOW_BYTES: u64 = 256 << 20;
/// What the two ends' timers and threads may be late by, in time at the measured rate: a window for the round trip alone would
/// starve short paths. It is also the queue that we make at worst.
const SLACK: Duration = Duration::from_millis(4);
/// The window's parts of what the path holds, one after another for a round each: ask for more, empty the queue that this made,
/// then keep still.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// The rate is the largest of so many rounds: one cycle and a bit.
const RATE_ROUNDS: usize = 10;
/// The shortest round trip is the shortest of so long; paths change. Each cycle empties the queue in between.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(10);
/// Starting is over when the rate has grown by less than this in each of [`STALE_ROUNDS`] rounds,
const GROWTH: f64 = 1.25;
const STALE_ROUNDS: u32 = 2;
/// or when every datagram of a round was later than the shortest round trip by an eighth and this,
const LATE: Duration = Duration::from_millis(4);
/// or when more than this part of a round was lost.
const START_LOSS: f64 = 0.02;
/// More loss than this in a round is our own doing: the rate is then what was delivered in it.
const OWN_LOSS: f64 = 0.1;

/// Makes [`Steady`] controllers.
#[derive(Debug, Default)]
pub struct SteadyConfig;

impl ControllerFactory for SteadyConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Steady::new(now, current_mtu))
    }
}

/// The controller of one path.
#[derive(Clone, Debug)]
pub struct Steady {
    mtu: u64,
    window: u64,
    starting: bool,
    /// Bytes a second in the last rounds that were not short of data; the newest at `rates[rounds % RATE_ROUNDS]`.
    rates: [f64; RATE_ROUNDS],
    rounds: usize,
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
    shortest: Duration,
    app_limited: bool,
}

impl Steady {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            window: INITIAL_WINDOW_BYTES,
            starting: true,
            rates: [0.0; RATE_ROUNDS],
            rounds: 0,
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

    fn end_round(&mut self, now: Instant) {
        let next = Round::new(now, self.newest_sent, self.delivered);
        let round = std::mem::replace(&mut self.round, next);
        let delivered = self.delivered - round.delivered_before;
        let seconds = (now - round.began).as_secs_f64().max(1e-6);
        let rate = delivered as f64 / seconds;
        let lost = round.lost as f64 / (round.lost + delivered).max(1) as f64;
        let best = self.rates.iter().copied().fold(0.0, f64::max);
        if round.app_limited && rate <= best {
            return; // it tells of what we had to send, not of the path
        }
        self.rounds = self.rounds.wrapping_add(1);
        if let Some(slot) = self.rates.get_mut(self.rounds % RATE_ROUNDS) {
            *slot = rate;
        }
        if self.starting {
            self.stale_rounds = if rate > self.best_start_rate * GROWTH { 0 } else { self.stale_rounds + 1 };
            self.best_start_rate = self.best_start_rate.max(rate);
            let shortest = self.shortest_round_trip();
            let late = round.shortest != Duration::MAX && round.shortest > shortest + shortest / 8 + LATE;
            self.starting = self.stale_rounds < STALE_ROUNDS && !late && lost <= START_LOSS;
            if !self.starting {
                self.rounds = 0; // a cycle begins; the first thing after asking for more is to empty the queue
            }
        } else if lost > OWN_LOSS {
            self.rates = [rate; RATE_ROUNDS];
        }
        self.follow();
    }

    /// The window for the next round.
    fn follow(&mut self) {
        if self.starting {
            return;
        }
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let part = CYCLE.get((self.rounds + 1) % CYCLE.len()).copied().unwrap_or(1.0);
        let holds = rate * (self.shortest_round_trip().as_secs_f64() * part + SLACK.as_secs_f64());
        self.window = (holds as u64).clamp(self.least(), MOST_WINDOW_BYTES);
    }
}

impl Round {
    fn new(began: Instant, until: u64, delivered_before: u64) -> Self {
        Self { began, until, delivered_before, lost: 0, shortest: Duration::MAX, app_limited: false }
    }
}

impl Controller for Steady {
    fn on_sent(&mut self, _now: Instant, _bytes: u64, last_packet_number: u64) {
        self.newest_sent = last_packet_number;
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        self.delivered += bytes;
        self.round.app_limited |= app_limited;
        let round_trip = now.saturating_duration_since(sent);
        self.round.shortest = self.round.shortest.min(round_trip);
        if now.saturating_duration_since(self.age_began) > ROUND_TRIP_AGE {
            self.shortest_before = self.shortest;
            self.shortest = round_trip;
            self.age_began = now;
        }
        self.shortest = self.shortest.min(round_trip);
        if self.starting && !app_limited {
            self.window = (self.window + bytes).min(MOST_WINDOW_BYTES);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        _in_flight: u64,
        _app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        if largest_packet_num_acked.is_some_and(|number| number >= self.round.until) {
            self.end_round(now);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
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
            if self.round.lost as f64 > START_LOSS * (delivered + self.round.lost).max(self.window / 4) as f64
            {
                self.end_round(now); // not a round trip later
            }
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(self.least());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
