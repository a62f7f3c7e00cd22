//! What comes back: the same bits from raw and lossless, values within each scheme's step from the others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use proptest::prelude::*;
use support::{Case, DTYPES, decoded, made, values, written};
use swarmnode_codec::{CodecError, Dtype, HEADER_BYTES, Scheme, Source, inspect, most_bytes};

/// The norm of the difference over the norm of the values.
fn damage(before: &[f32], after: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let pairs = before.iter().zip(after);
    let difference = square(&mut pairs.map(|(x, y)| f64::from(*x) - f64::from(*y)));
    (difference / square(&mut before.iter().map(|x| f64::from(*x)))).sqrt()
}

fn damage_of(scheme: Scheme, group: u64, case: &Case) -> f64 {
    let blob = written(scheme, group, 1, &case.source());
    assert_eq!(inspect(&blob).unwrap().scheme, scheme);
    let after = decoded(&blob, case.dtype, case.rows, case.cols).unwrap();
    damage(&case.values(), &values(case.dtype, &after))
}

#[test]
fn each_scheme_does_the_damage_it_should() {
    for (scheme, group, most) in [
        (Scheme::H8, 0, 0.008),
        (Scheme::H6, 0, 0.03),
        (Scheme::E4m3, 0, 0.03),
        (Scheme::E4m3, 64, 0.03),
        (Scheme::E5m2, 64, 0.06),
        (Scheme::H4, 0, 0.12),
    ] {
        for kind in [0, 1, 5] {
            for (dtype, cols) in
                [(Dtype::F32, 576), (Dtype::Bf16, 2560), (Dtype::F16, 1000), (Dtype::F32, 97)]
            {
                if kind == 1 && dtype == Dtype::F16 {
                    continue; // 1e-5 has no precision to lose there
                }
                let found = damage_of(scheme, group, &made(dtype, 3, cols, kind, 7));
                assert!(found < most, "{scheme} {group} of {kind} {dtype} {cols}: {found}");
                assert!(found > most / 100.0, "{scheme} {group} of {kind} {dtype} {cols}: {found}");
            }
        }
    }
}

#[test]
fn gradients_below_the_smallest_scale_become_zero() {
    let case = made(Dtype::F32, 2, 128, 2, 1);
    let blob = written(Scheme::H8, 0, 0, &case.source());
    let after = decoded(&blob, Dtype::F32, 2, 128).unwrap();
    assert!(after.iter().all(|byte| *byte == 0));
    // Six powers of ten above they survive.
    let larger: Vec<f32> = case.values().iter().map(|value| value * 1e6).collect();
    let case = Case { bytes: support::narrow(Dtype::F32, &larger), ..case };
    assert!(damage_of(Scheme::H8, 0, &case) < 0.008);
}

#[test]
fn one_value_that_is_not_finite_sends_the_whole_message_raw() {
    for scheme in [Scheme::H8, Scheme::H6, Scheme::H4, Scheme::E4m3, Scheme::E5m2] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xFFFF_FFFF)] {
            for at in [0, 70, 99, 199, 299] {
                let mut values = made(Dtype::F32, 3, 100, 0, 5).values();
                values[at] = bad;
                let bytes = support::narrow(Dtype::F32, &values);
                let case = Case { dtype: Dtype::F32, rows: 3, cols: 100, bytes };
                let blob = written(scheme, 0, 1, &case.source());
                assert_eq!(inspect(&blob).unwrap().scheme, Scheme::Raw);
                assert_eq!(decoded(&blob, Dtype::F32, 3, 100).unwrap(), case.bytes);
            }
        }
    }
}

#[test]
fn what_overflows_travels_raw_and_what_is_just_below_does_not_overflow() {
    let most = Case { dtype: Dtype::F32, rows: 1, cols: 64, bytes: f32::MAX.to_le_bytes().repeat(64) };
    for scheme in [Scheme::H8, Scheme::H6, Scheme::H4] {
        assert_eq!(inspect(&written(scheme, 0, 0, &most.source())).unwrap().scheme, Scheme::Raw);
    }
    let large = Case { bytes: (f32::MAX / 65.0).to_le_bytes().repeat(64), ..most };
    let blob = written(Scheme::H8, 0, 0, &large.source());
    assert_eq!(inspect(&blob).unwrap().scheme, Scheme::H8);
    let after = values(Dtype::F32, &decoded(&blob, Dtype::F32, 1, 64).unwrap());
    assert!(damage(&large.values(), &after) < 0.005, "{after:?}");
}

#[test]
fn a_shape_without_values_is_a_header() {
    for scheme in Scheme::ALL {
        for (rows, cols) in [(0, 0), (0, 5), (5, 0)] {
            let source = Source::new(&[], Dtype::Bf16, rows, cols, None).unwrap();
            let blob = written(scheme, 0, 1, &source);
            assert_eq!((blob.len(), inspect(&blob).unwrap().scheme), (HEADER_BYTES, Scheme::Raw));
            assert_eq!(decoded(&blob, Dtype::F32, rows, cols).unwrap(), []);
        }
    }
}

#[test]
fn few_or_very_many_columns_have_no_outliers() {
    for scheme in [Scheme::H6, Scheme::H4] {
        for (cols, becomes) in [(7, Scheme::H8), (8, scheme), (65_536, scheme), (65_537, Scheme::H8)] {
            let case = made(Dtype::Bf16, 1, cols, 0, 1);
            assert_eq!(inspect(&written(scheme, 0, 0, &case.source())).unwrap().scheme, becomes);
        }
    }
}

#[test]
fn outliers_come_back_as_bfloat16_whatever_they_are_next_to() {
    // Equal magnitudes: the lower columns win, and 63 and 64 are in different groups.
    let mut values = vec![0.5f32; 130];
    for column in [10, 63, 64, 100, 129] {
        values[column] = if column % 2 == 0 { 1000.0 } else { -1000.0 };
    }
    let case = Case { dtype: Dtype::F32, rows: 1, cols: 130, bytes: support::narrow(Dtype::F32, &values) };
    let blob = written(Scheme::H6, 0, 0, &case.source());
    let after = support::values(Dtype::F32, &decoded(&blob, Dtype::F32, 1, 130).unwrap());
    for column in [10, 63, 64, 100] {
        assert_eq!(after[column], values[column]);
    }
    assert!((after[129] + 1000.0).abs() > 0.0 && (after[129] + 1000.0).abs() < 100.0);
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let error = |scheme, rows, cols, group| most_bytes(scheme, Dtype::F32, rows, cols, group).unwrap_err();
    assert_eq!(error(Scheme::H8, 1, 1, 64), CodecError::BadGroup { scheme: Scheme::H8, group: 64 });
    assert_eq!(error(Scheme::E4m3, 1, 1, 32), CodecError::BadGroup { scheme: Scheme::E4m3, group: 32 });
    assert!(matches!(error(Scheme::Raw, 1 << 33, 1, 0), CodecError::TooLarge { .. }));
    assert!(matches!(error(Scheme::Raw, 1 << 31, 2, 0), CodecError::TooLarge { .. }));
    let short = Source::new(&[0; 15], Dtype::F32, 2, 2, None).unwrap_err();
    assert_eq!(short, CodecError::BadValues { needed: 16, given: 15 });
    let huge = Source::new(&[0; 15], Dtype::F32, 3, 2, Some(usize::MAX)).unwrap_err();
    assert_eq!(huge, CodecError::BadValues { needed: usize::MAX, given: 15 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn raw_and_lossless_are_exact(case in support::case(), zstd_level in 0i64..4) {
        for scheme in [Scheme::Raw, Scheme::Lossless] {
            let blob = written(scheme, 0, zstd_level, &case.source());
            prop_assert_eq!(&decoded(&blob, case.dtype, case.rows, case.cols).unwrap(), &case.bytes);
        }
    }

    #[test]
    fn another_dtype_is_what_decoding_and_converting_gives(case in support::case()) {
        for scheme in Scheme::ALL {
            let blob = written(scheme, 0, 1, &case.source());
            let same = decoded(&blob, case.dtype, case.rows, case.cols).unwrap();
            let wide = decoded(&blob, Dtype::F32, case.rows, case.cols).unwrap();
            if matches!(inspect(&blob).unwrap().scheme, Scheme::Raw | Scheme::Lossless) {
                let source = Source::new(&same, case.dtype, 1, case.rows * case.cols, None).unwrap();
                let direct = decoded(&written(Scheme::Raw, 0, 0, &source), Dtype::F32, 1, case.rows * case.cols).unwrap();
                prop_assert_eq!(direct, wide);
            } else {
                // The quantised schemes compute in singles and round once, to whatever is asked for.
                let singles = values(Dtype::F32, &wide);
                for dtype in DTYPES {
                    prop_assert_eq!(decoded(&blob, dtype, case.rows, case.cols).unwrap(), support::narrow(dtype, &singles));
                }
            }
        }
    }

    #[test]
    fn rows_apart_are_coded_as_rows_that_touch(case in support::case(), gap in 0usize..40) {
        let row = case.bytes.len() / case.rows as usize;
        let spread: Vec<u8> = case.bytes.chunks(row).flat_map(|row| row.iter().copied().chain(vec![0xEE; gap])).collect();
        let reach = &spread[..spread.len() - gap];
        let source = Source::new(reach, case.dtype, case.rows, case.cols, Some(row + gap)).unwrap();
        for scheme in Scheme::ALL {
            prop_assert_eq!(written(scheme, 0, 1, &source), written(scheme, 0, 1, &case.source()));
        }
    }

    #[test]
    fn a_message_is_as_good_as_its_groups(case in support::case()) {
        // 8 bits of a rotated group: no value is off by more than half a step of each of its codes.
        let blob = written(Scheme::H8, 0, 0, &case.source());
        prop_assume!(inspect(&blob).unwrap().scheme == Scheme::H8);
        let after = values(Dtype::F32, &decoded(&blob, Dtype::F32, case.rows, case.cols).unwrap());
        let before = case.values();
        for (before, after) in before.chunks(case.cols as usize).zip(after.chunks(case.cols as usize)) {
            for (before, after) in before.chunks(64).zip(after.chunks(64)) {
                let sum: f64 = before.iter().map(|value| f64::from(value.abs())).sum();
                for (x, y) in before.iter().zip(after) {
                    // A scale below the smallest normal bfloat16 counts as zero.
                    let bound = sum / 127.0 * 0.51 + 127.0 * 1.2e-38;
                    prop_assert!((f64::from(*x) - f64::from(*y)).abs() <= bound, "{} {} {}", x, y, bound);
                }
            }
        }
    }
}
