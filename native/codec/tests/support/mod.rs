//! What the codec's tests share: cases of values, and calls that need no `Result`.
#![allow(dead_code)] // each test uses some of it

use proptest::prelude::*;
use swarmnode_codec::{CodecError, Dtype, Level, Plan, Scheme, Source, decode_on, encode_into, most_bytes};

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

#[derive(Clone, Copy)]
pub struct Named {
    pub scheme: Scheme,
}

impl Named {
    pub fn takes_group(self) -> bool {
        matches!(self.scheme, Scheme::E4m3 | Scheme::E5m2)
    }
}

pub const SCHEMES: [Named; 7] = [
    Named { scheme: Scheme::Raw },
    Named { scheme: Scheme::Lossless },
    Named { scheme: Scheme::H8 },
    Named { scheme: Scheme::H6 },
    Named { scheme: Scheme::E4m3 },
    Named { scheme: Scheme::E5m2 },
    Named { scheme: Scheme::H4 },
];

#[derive(Clone)]
pub struct Case {
    pub dtype: Dtype,
    pub rows: u64,
    pub cols: u64,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} {:?}", self.rows, self.cols, self.dtype)
    }
}

impl Case {
    pub fn source(&self) -> Source<'_> {
        Source::new(&self.bytes, self.dtype, self.rows, self.cols, None).unwrap()
    }

    pub fn values(&self) -> Vec<f32> {
        values(self.dtype, &self.bytes)
    }
}

/// A small generator, so that a case is the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum()
    }
}

pub fn narrow(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let singles: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    if dtype == Dtype::F32 {
        return singles;
    }
    let source = Source::new(&singles, Dtype::F32, 1, values.len() as u64, None).unwrap();
    let blob = written(Scheme::Raw, 0, 0, &source);
    decoded(&blob, dtype, 1, values.len() as u64).unwrap()
}

pub fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() / dtype.bytes();
    let source = Source::new(bytes, dtype, 1, count as u64, None).unwrap();
    let singles = decoded(&written(Scheme::Raw, 0, 0, &source), Dtype::F32, 1, count as u64).unwrap();
    singles.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

pub fn written(scheme: Scheme, group: u64, zstd_level: i64, source: &Source<'_>) -> Vec<u8> {
    let (rows, cols) = (source.shape().0.into(), source.shape().1.into());
    let plan = Plan::new(scheme, source.dtype(), rows, cols, group, zstd_level).unwrap();
    let mut blob = vec![0xA5; most_bytes(scheme, source.dtype(), rows, cols, group).unwrap()];
    let length = encode_into(&plan, source, &mut blob).unwrap();
    blob.truncate(length);
    blob
}

pub fn decoded(blob: &[u8], dtype: Dtype, rows: u64, cols: u64) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![0x5A; (rows * cols) as usize * dtype.bytes()];
    swarmnode_codec::decode_into(blob, dtype, rows, cols, &mut out).map(|()| out)
}

pub fn blob_on(level: Level, scheme: Scheme, group: u64, zstd_level: i64, case: &Case) -> Vec<u8> {
    let plan = Plan::new(scheme, case.dtype, case.rows, case.cols, group, zstd_level).unwrap().on(level);
    let mut blob = vec![0xA5; most_bytes(scheme, case.dtype, case.rows, case.cols, group).unwrap()];
    let length = encode_into(&plan, &case.source(), &mut blob).unwrap();
    blob.truncate(length);
    blob
}

pub fn decoded_on(level: Level, blob: &[u8], dtype: Dtype, case: &Case) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![0x5A; case.bytes.len() / case.dtype.bytes() * dtype.bytes()];
    decode_on(level, blob, dtype, case.rows, case.cols, &mut out).map(|()| out)
}

/// Values of one of several kinds: like activations, tiny, with ties, all alike, or any bits at all (NaN, infinity).
pub fn made(dtype: Dtype, rows: u64, cols: u64, kind: u64, seed: u64) -> Case {
    let mut random = Random(seed);
    let count = (rows * cols) as usize;
    let bytes = match kind {
        0..6 => {
            let mut values: Vec<f32> = (0..count).map(|_| random.normal()).collect();
            for (at, value) in values.iter_mut().enumerate() {
                match kind {
                    0 if at as u64 % cols % 100 == 3 => *value *= 300.0,
                    1 => *value *= 1e-5,
                    2 => *value *= 1e-38,
                    3 => *value = (*value * 2.0).round(),
                    4 => *value = 0.25,
                    5 => *value *= if dtype == Dtype::F16 { 1e3 } else { 1e36 },
                    _ => {}
                }
            }
            narrow(dtype, &values)
        }
        _ => (0..count * dtype.bytes()).map(|_| random.bits() as u8).collect(),
    };
    Case { dtype, rows, cols, bytes }
}

pub fn case() -> impl Strategy<Value = Case> {
    let cols = prop_oneof![1u64..200, Just(64), Just(128), Just(576), Just(640)];
    (0usize..3, 1u64..5, cols, 0u64..7, any::<u64>())
        .prop_map(|(dtype, rows, cols, kind, seed)| made(DTYPES[dtype], rows, cols, kind, seed))
}
