//! Any values in any shape, encoded: `cargo +nightly fuzz run encode` in native/codec. What was encoded can be decoded, and raw
//! and lossless come back as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarmnode_codec::{Dtype, Plan, Scheme, Source, decode_into, encode_into, most_bytes};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[scheme, dtype, cols, options], values)) = bytes.split_first_chunk() else { return };
    let scheme = Scheme::ALL[usize::from(scheme) % Scheme::ALL.len()];
    let dtype = Dtype::ALL[usize::from(dtype) % Dtype::ALL.len()];
    let cols = u64::from(cols) + 1;
    let group = if matches!(scheme, Scheme::E4m3 | Scheme::E5m2) && options & 1 != 0 { 64 } else { 0 };
    let rows = values.len() as u64 / dtype.bytes() as u64 / cols;
    let values = &values[..(rows * cols) as usize * dtype.bytes()];

    let source = Source::new(values, dtype, rows, cols, None).expect("a whole matrix");
    let plan = Plan::new(scheme, dtype, rows, cols, group, i64::from(options >> 1 & 3)).expect("a plan");
    let mut blob = vec![0xA5; most_bytes(scheme, dtype, rows, cols, group).expect("a size")];
    let length = encode_into(&plan, &source, &mut blob).expect("any values can be sent");
    let mut out = vec![0; values.len()];
    decode_into(&blob[..length], dtype, rows, cols, &mut out).expect("what was encoded");
    if matches!(scheme, Scheme::Raw | Scheme::Lossless) {
        assert_eq!(out, values);
    }
});
