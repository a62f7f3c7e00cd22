//! The golden bytes in tests/codec/golden, made by the slow reference: every kind of CPU code equals them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use std::path::Path;
use support::{Case, blob_on, decoded_on};
use swarmnode_codec::{Dtype, Level, Scheme, inspect};

fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let (length, behind) = rest.split_first_chunk().unwrap();
    let (part, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
    *rest = behind;
    part
}

#[test]
fn golden_bytes_are_what_we_write_and_read() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/codec/golden/cases.bin");
    let bytes = std::fs::read(file).unwrap();
    let (mut rest, mut cases) = (bytes.as_slice(), 0);
    while !rest.is_empty() {
        let name = std::str::from_utf8(part(&mut rest)).unwrap();
        let (values, blob, decoded) = (part(&mut rest), part(&mut rest), part(&mut rest));
        let words: Vec<&str> = name.split(' ').collect();
        let (rows, cols) = words[1].split_once('x').unwrap();
        let case = Case {
            dtype: Dtype::ALL[["f32", "f16", "bf16"].iter().position(|dtype| *dtype == words[0]).unwrap()],
            rows: rows.parse().unwrap(),
            cols: cols.parse().unwrap(),
            bytes: values.to_vec(),
        };
        let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.to_string() == words[2]).unwrap();
        assert_eq!(inspect(blob).unwrap().scheme, scheme, "{name}");
        for level in Level::available() {
            assert!(
                decoded_on(level, blob, case.dtype, &case).unwrap() == decoded,
                "{level:?} decodes {name} otherwise"
            );
            if words.last() == Some(&"zstd") {
                assert!(inspect(blob).unwrap().squeezed.is_some(), "{name}");
            } else {
                let ours = blob_on(level, scheme, words[3].parse().unwrap(), 0, &case);
                assert!(ours == blob, "{level:?} encodes {name} otherwise");
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 87);
}
