//! Every kind of CPU code that this machine can run makes the same bytes, of values and of blobs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use proptest::prelude::*;
use support::{Case, DTYPES, SCHEMES, blob_on, case, decoded_on};
use swarmnode_codec::Level;

fn same_on_all(case: &Case) -> Result<(), TestCaseError> {
    for scheme in SCHEMES {
        for group in if scheme.takes_group() { &[0, 64][..] } else { &[0] } {
            let expected = blob_on(Level::available().pop().unwrap(), scheme.scheme, *group, 0, case);
            for level in Level::available() {
                let blob = blob_on(level, scheme.scheme, *group, 0, case);
                prop_assert!(
                    blob == expected,
                    "{:?} encodes {:?} of {case:?} otherwise",
                    level,
                    scheme.scheme
                );
                for dtype in DTYPES {
                    let ours = decoded_on(level, &blob, dtype, case).unwrap();
                    let portable =
                        decoded_on(*Level::available().last().unwrap(), &blob, dtype, case).unwrap();
                    prop_assert!(
                        ours == portable,
                        "{level:?} decodes {:?} of {case:?} otherwise",
                        scheme.scheme
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_portable_code_is_always_there_and_last() {
    assert_eq!(format!("{:?}", Level::available().last().unwrap()), "portable");
    assert_eq!(Level::available().first(), Some(&Level::best()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn all_levels_make_the_same_bytes(case in case()) {
        same_on_all(&case)?;
    }
}
