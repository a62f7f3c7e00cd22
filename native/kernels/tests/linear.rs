//! Linear layers against slow ones in doubles, and a row's bits against themselves in other company.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use proptest::prelude::*;
use std::ops::Range;
use support::{DTYPES, Tensor, noise, rounding};
use swarmnode_kernels::{Dtype, KernelError, Level, View, linear, linear_on};

#[derive(Debug, Clone)]
struct Case {
    dtype: Dtype,
    rows: usize,
    inputs: usize,
    outputs: usize,
    bias: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let inputs = prop_oneof![Just(64), 1usize..80, 1000usize..1100, Just(2100)];
    (prop::sample::select(&DTYPES[..]), 1usize..20, inputs, 1usize..70, any::<bool>(), any::<u64>()).prop_map(
        |(dtype, rows, inputs, outputs, bias, seed)| Case { dtype, rows, inputs, outputs, bias, seed },
    )
}

impl Case {
    fn rows(&self) -> Vec<f32> {
        noise(self.seed, self.rows * self.inputs)
    }

    fn weights(&self) -> Tensor {
        Tensor::noise(self.dtype, [1, 1, self.outputs, self.inputs], self.seed ^ 1)
    }

    fn bias(&self) -> Option<Tensor> {
        self.bias.then(|| Tensor::noise(self.dtype, [1, 1, 1, self.outputs], self.seed ^ 2))
    }

    /// Each row's results as bits, sevens where no run is.
    fn run(&self, level: Level, rows: &[f32], runs: &[Range<usize>], threads: usize) -> Vec<Vec<u32>> {
        let count = rows.len() / self.inputs;
        let mut rows = Tensor::of(self.dtype, [1, 1, count, self.inputs], rows);
        let mut out = Tensor::of(self.dtype, [1, 1, count, self.outputs], &vec![7.0; count * self.outputs]);
        let (mut weights, mut bias) = (self.weights(), self.bias());
        let bias = bias.as_mut().map(Tensor::view);
        linear_on(level, &rows.view(), &weights.view(), bias.as_ref(), &out.view(), runs, threads).unwrap();
        out.bits().chunks(self.outputs).map(<[u32]>::to_vec).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn it_is_what_a_slow_one_in_doubles_says(case in case()) {
        let level = *Level::available().first().unwrap();
        let ours = case.run(level, &case.rows(), &[0..case.rows, case.rows..case.rows], 1);
        let rows = Tensor::of(case.dtype, [1, 1, case.rows, case.inputs], &case.rows()).values();
        let weights = case.weights().values();
        let bias = case.bias().map_or_else(|| vec![0.0; case.outputs], |bias| bias.values());
        for (row, ours) in rows.chunks(case.inputs).zip(ours) {
            for ((weights, bias), ours) in weights.chunks(case.inputs).zip(&bias).zip(ours) {
                let products = || row.iter().zip(weights).map(|(x, y)| f64::from(*x) * f64::from(*y));
                let slow = products().sum::<f64>() + f64::from(*bias);
                let size = products().map(f64::abs).sum::<f64>() + f64::from(bias.abs());
                let off = (f64::from(f32::from_bits(ours)) - slow).abs();
                prop_assert!(off <= rounding(case.dtype) * slow.abs() + 1e-6 * size, "{slow} is off by {off}");
            }
        }
    }

    #[test]
    fn a_row_gets_the_same_bits_in_any_company(case in case(), threads in 1usize..5, left_out in 0usize..20) {
        let level = *Level::available().first().unwrap();
        let rows = case.rows();
        let whole = case.run(level, &rows, &[0..case.rows, case.rows..case.rows], threads);
        for (row, together) in rows.chunks(case.inputs).zip(&whole) {
            prop_assert!(case.run(level, row, &[0..1, 1..1], 1)[0] == *together);
        }
        let left_out = left_out % case.rows;
        let some = case.run(level, &rows, &[0..left_out, left_out + 1..case.rows], threads);
        for (number, (some, whole)) in some.iter().zip(&whole).enumerate() {
            let untouched = some.iter().all(|bits| *bits == 7.0f32.to_bits());
            prop_assert!(if number == left_out { untouched } else { some == whole }, "row {}", number);
        }
    }

    #[test]
    fn all_levels_give_the_same_bits(case in case()) {
        let runs = [0..case.rows, case.rows..case.rows];
        let levels = Level::available();
        let expected = case.run(*levels.last().unwrap(), &case.rows(), &runs, 1);
        for level in levels {
            prop_assert!(case.run(level, &case.rows(), &runs, 1) == expected, "{level:?}");
        }
    }
}

#[test]
fn large_layers_are_shared_between_threads_without_a_change() {
    let case = Case { dtype: Dtype::F32, rows: 9, inputs: 700, outputs: 1500, bias: true, seed: 4 };
    let level = *Level::available().first().unwrap();
    let alone = case.run(level, &case.rows(), &[0..4, 4..9], 1);
    for threads in [2, 3, 8] {
        assert!(case.run(level, &case.rows(), &[0..4, 4..9], threads) == alone);
    }
}

#[test]
fn two_that_ask_at_once_are_both_served() {
    let case = Case { dtype: Dtype::F32, rows: 5, inputs: 600, outputs: 900, bias: false, seed: 5 };
    let level = *Level::available().first().unwrap();
    let alone = case.run(level, &case.rows(), &[0..2, 2..5], 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert!(case.run(level, &case.rows(), &[0..2, 2..5], 3) == alone);
                }
            });
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut rows, mut weights) =
        (Tensor::zeros(Dtype::F32, [1, 1, 2, 8]), Tensor::zeros(Dtype::F32, [1, 1, 3, 8]));
    let (mut out, mut wrong) =
        (Tensor::zeros(Dtype::F32, [1, 1, 2, 3]), Tensor::zeros(Dtype::F32, [1, 1, 2, 4]));
    let mut half = Tensor::zeros(Dtype::F16, [1, 1, 2, 3]);
    let level = *Level::available().first().unwrap();
    let (rows, weights) = (rows.view(), weights.view());
    let out = out.view();
    let call = |out: &View, runs: &[Range<usize>]| linear_on(level, &rows, &weights, None, out, runs, 1);
    assert_eq!(call(&out, &[0..1, 1..2]), Ok(()));
    assert_eq!(linear(&rows, &weights, None, &out, &[0..1, 1..2], 1).is_ok(), Level::best().is_some());
    for runs in [[0..2, 1..2], [1..2, 0..1], [0..1, 1..3]] {
        assert!(matches!(call(&out, &runs), Err(KernelError::Unfit(_))));
    }
    for out in [wrong.view(), half.view()] {
        assert!(matches!(call(&out, &[0..1, 1..2]), Err(KernelError::Unfit(_))));
    }
}
