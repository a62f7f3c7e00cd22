//! The codec's speed on a machine that has other work: `cargo run --release -p swarmnode-codec --example speed [filter]`.
//!
//! Criterion's means count the time that other processes had the core. This runs batches shorter than a time slice and
//! keeps the fastest of many, which is what one core does when it is left alone; it says so in Gvalues/s.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

use std::hint::black_box;
use std::time::{Duration, Instant};
use swarmnode_codec::{Dtype, Level, Plan, Scheme, Source, decode_on};

const COLS: usize = 1280;
/// Bytes of the uncoded message.
const MESSAGES: [usize; 4] = [5 << 10, 64 << 10, 1 << 20, 4 << 20];
/// Well below a time slice of the scheduler.
const BATCH: Duration = Duration::from_micros(100);
const BATCHES: u32 = 400;

/// The sum of twelve uniform numbers is nearly normal; every 160th channel is 50 times as large.
fn activations(dtype: Dtype, values: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut bytes = Vec::new();
    for column in 0..values {
        let normal: f32 = (0..12).map(|_| uniform()).sum();
        let value = if column % COLS % 160 == 7 { normal * 50.0 } else { normal };
        match dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            _ => bytes.extend(((value.to_bits() + 0x8000) >> 16).to_le_bytes().iter().take(2)),
        }
    }
    bytes
}

/// The shortest time of one call.
fn best(mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    call();
    let calls = (BATCH.as_nanos() / start.elapsed().as_nanos().max(1)).max(1) as u32;
    let batch = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed() / calls
    };
    (0..BATCHES).map(batch).min().unwrap_or_default()
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.trim());
    println!("{:<34} {:>9} {:>9} {:>12}", "", "encode", "decode", "bytes/value");
    for scheme in Scheme::ALL {
        for (dtype, name) in [(Dtype::Bf16, "bf16"), (Dtype::F32, "f32")] {
            for message in MESSAGES {
                for level in Level::available() {
                    let label = format!("{scheme} {name} {} KiB {level:?}", message >> 10);
                    if label.contains(&filter) {
                        one(scheme, dtype, (message / dtype.bytes() / COLS).max(1), level, &label);
                    }
                }
            }
        }
    }
}

fn one(scheme: Scheme, dtype: Dtype, rows: usize, level: Level, label: &str) {
    let values = rows * COLS;
    let bytes = activations(dtype, values);
    let (rows, cols) = (rows as u64, COLS as u64);
    let source = Source::new(&bytes, dtype, rows, cols, None).expect("a whole matrix");
    let plan = Plan::new(scheme, dtype, rows, cols, 0, i64::from(scheme == Scheme::Lossless));
    let plan = plan.expect("a plan").on(level);
    let mut blob = vec![0; plan.bytes()];
    let length = plan.write(&source, &mut blob).expect("finite values");
    let mut out = vec![0; bytes.len()];
    let encode = best(|| assert!(plan.write(&source, black_box(&mut blob)).is_ok()));
    let coded = &blob[..length];
    let decode = best(|| assert!(decode_on(level, coded, dtype, rows, cols, black_box(&mut out)).is_ok()));
    let rate = |time: Duration| values as f64 / time.as_nanos() as f64;
    let each = length as f64 / values as f64;
    println!("{label:<34} {:>9.2} {:>9.2} {each:>12.3}", rate(encode), rate(decode));
}
