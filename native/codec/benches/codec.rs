//! How fast the codec is on one core: `cargo bench -p swarmnode-codec`, with a filter behind it if wanted
//! (`-- h8/encode`). Throughput counts values. The values are like activations: normal, with a few large channels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use swarmnode_codec::{Dtype, Level, Plan, Scheme, Source, decode_on};

const COLS: usize = 1280;
/// Bytes of the uncoded message.
const MESSAGES: [usize; 4] = [5 << 10, 64 << 10, 1 << 20, 4 << 20];

/// The sum of four uniform numbers has nearly the shape of a normal one; every 160th channel is 50 times as large.
fn activations(dtype: Dtype, values: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut bytes = Vec::new();
    for column in 0..values {
        let normal = (uniform() + uniform() + uniform() + uniform()) * 1.7;
        let value = if column % COLS % 160 == 7 { normal * 50.0 } else { normal };
        match dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::Bf16 => bytes.extend(((value.to_bits() + 0x8000) >> 16).to_le_bytes().iter().take(2)),
            Dtype::F16 => unreachable!("not measured"),
        }
    }
    bytes
}

fn measure(criterion: &mut Criterion) {
    let schemes = [Scheme::Raw, Scheme::Lossless, Scheme::H8, Scheme::H6, Scheme::E4m3, Scheme::H4];
    for scheme in schemes {
        for (dtype, name) in [(Dtype::Bf16, "bf16"), (Dtype::F32, "f32")] {
            for message in MESSAGES {
                let rows = message / dtype.bytes() / COLS;
                let levels = if message == 64 << 10 { Level::available() } else { vec![Level::best()] };
                for level in levels {
                    one(
                        criterion,
                        scheme,
                        dtype,
                        rows.max(1),
                        level,
                        &format!("{name}-{}KiB-{level:?}", message >> 10),
                    );
                }
            }
        }
    }
}

fn one(criterion: &mut Criterion, scheme: Scheme, dtype: Dtype, rows: usize, level: Level, name: &str) {
    let values = rows * COLS;
    let bytes = activations(dtype, values);
    let source = Source::new(&bytes, dtype, rows as u64, COLS as u64, None).expect("a whole matrix");
    let zstd_level = i64::from(scheme == Scheme::Lossless);
    let plan = Plan::new(scheme, dtype, rows as u64, COLS as u64, 0, zstd_level).expect("a plan").on(level);
    let mut blob = vec![0; plan.bytes()];
    let length = plan.write(&source, &mut blob).expect("finite values");
    let mut out = vec![0; bytes.len()];

    let mut group = criterion.benchmark_group(scheme.to_string());
    group.throughput(Throughput::Elements(values as u64));
    group
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
        .sample_size(20);
    group.bench_function(BenchmarkId::new("encode", name), |bench| {
        bench.iter(|| plan.write(&source, black_box(&mut blob)));
    });
    let coded = &blob[..length];
    group.bench_function(BenchmarkId::new("decode", name), |bench| {
        bench.iter(|| decode_on(level, coded, dtype, rows as u64, COLS as u64, black_box(&mut out)));
    });
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
