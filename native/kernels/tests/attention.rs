//! Attention against a slow one in doubles, and its bits against themselves in other company.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use proptest::prelude::*;
use support::{DTYPES, Tensor, noise, rounding};
use swarmnode_kernels::{Attention, Dtype, KernelError, Level, Session, attend, attend_on};

#[derive(Debug, Clone)]
struct Case {
    dtype: Dtype,
    key_heads: usize,
    group: usize,
    width: usize,
    value_width: usize,
    soft_cap: Option<f32>,
    sinks: bool,
    /// Of each session: rows, tokens before its own, and how many of them it does not see.
    sessions: Vec<(usize, usize, usize)>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let widths = prop_oneof![Just(16), Just(64), Just(80), 1usize..40];
    let session = (1usize..3, 0usize..70, 0usize..70)
        .prop_map(|(rows, before, unseen)| (rows, before, unseen.min(before)));
    (
        (prop::sample::select(&DTYPES[..]), 1usize..4, 1usize..7, widths.clone(), widths),
        (prop::option::of(Just(5.0f32)), any::<bool>(), prop::collection::vec(session, 1..5), any::<u64>()),
    )
        .prop_map(
            |((dtype, key_heads, group, width, value_width), (soft_cap, sinks, sessions, seed))| Case {
                dtype,
                key_heads,
                group,
                width,
                value_width,
                soft_cap,
                sinks,
                sessions,
                seed,
            },
        )
}

/// What a session gets of its own, wherever it stands.
struct Own {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    keys: Tensor,
    values: Tensor,
    at: usize,
    first: usize,
}

impl Case {
    fn heads(&self) -> usize {
        self.key_heads * self.group
    }

    fn sinks(&self) -> Option<Vec<f32>> {
        self.sinks.then(|| noise(self.seed ^ 5, self.heads()))
    }

    /// Room for three tokens more than there are; what is not seen is not a number.
    fn own(&self, number: usize) -> Own {
        let (rows, before, first) = self.sessions[number];
        let seed = self.seed.wrapping_add(100 * number as u64);
        let room = before + 4;
        let shape = |width| [rows, self.key_heads, room, width];
        let slab = |width: usize, seed| {
            let mut values = noise(seed, rows * self.key_heads * room * width);
            for (index, value) in values.iter_mut().enumerate() {
                let token = index / width % room;
                if token < first || token >= before {
                    *value = f32::NAN;
                }
            }
            Tensor::of(self.dtype, shape(width), &values)
        };
        let narrow = |values: Vec<f32>| Tensor::of(self.dtype, [1, 1, 1, values.len()], &values).values();
        Own {
            query: narrow(
                noise(seed ^ 1, rows * self.heads() * self.width).iter().map(|value| 4.0 * value).collect(),
            ),
            key: narrow(noise(seed ^ 2, rows * self.key_heads * self.width)),
            value: narrow(noise(seed ^ 3, rows * self.key_heads * self.value_width)),
            keys: slab(self.width, seed ^ 4),
            values: slab(self.value_width, seed ^ 6),
            at: before,
            first,
        }
    }

    /// The results of the sessions in this order, and what their rooms hold then.
    fn run(&self, level: Level, order: &[usize], threads: usize) -> Vec<(Vec<u32>, Vec<u32>, Vec<u32>)> {
        let mut own: Vec<Own> = order.iter().map(|number| self.own(*number)).collect();
        let tokens: usize = order.iter().map(|number| self.sessions[*number].0).sum();
        let packed = |heads: usize, width: usize, of: &dyn Fn(&Own) -> &Vec<f32>| {
            // Tokens first, as the stock code has them before it turns them round.
            let values: Vec<f32> = own.iter().flat_map(|own| of(own).clone()).collect();
            Tensor::of(self.dtype, [1, tokens, heads, width], &values)
        };
        let mut queries = packed(self.heads(), self.width, &|own| &own.query);
        let mut keys = packed(self.key_heads, self.width, &|own| &own.key);
        let mut values = packed(self.key_heads, self.value_width, &|own| &own.value);
        let mut out = Tensor::zeros(self.dtype, [1, tokens, self.heads(), self.value_width]);
        let turned = |tensor: &mut Tensor| {
            let [_, tokens, heads, width] = tensor.shape;
            tensor.strided([tokens * heads * width, width, heads * width, 1], [1, heads, tokens, width], 0)
        };
        let sinks = self.sinks();
        let all = Attention {
            queries: turned(&mut queries),
            keys: turned(&mut keys),
            values: turned(&mut values),
            out: out.view(),
            scale: 0.3,
            soft_cap: self.soft_cap,
            sinks: sinks.as_deref(),
        };
        let mut token = 0;
        let mut sessions = Vec::new();
        for own in &mut own {
            let [rows, ..] = own.keys.shape;
            let (at, first) = (own.at, own.first);
            sessions.push(Session { keys: own.keys.view(), values: own.values.view(), token, at, first });
            token += rows;
        }
        attend_on(level, &all, &sessions, threads).unwrap();
        let bits = out.bits();
        let each = self.heads() * self.value_width;
        own.iter()
            .zip(&sessions)
            .map(|(own, session)| {
                let [rows, ..] = own.keys.shape;
                (
                    bits[session.token * each..(session.token + rows) * each].to_vec(),
                    own.keys.bits(),
                    own.values.bits(),
                )
            })
            .collect()
    }

    /// The same slowly, of one session.
    fn slowly(&self, number: usize) -> Vec<f64> {
        let own = self.own(number);
        let [rows, key_heads, room, width] = own.keys.shape;
        let (mut keys, mut values) = (own.keys.values(), own.values.values());
        for row in 0..rows {
            for head in 0..key_heads {
                let (from, to) = ((row * key_heads + head), (row * key_heads + head) * room + own.at);
                keys[to * width..(to + 1) * width]
                    .copy_from_slice(&own.key[from * width..(from + 1) * width]);
                let width = self.value_width;
                values[to * width..(to + 1) * width]
                    .copy_from_slice(&own.value[from * width..(from + 1) * width]);
            }
        }
        let mut out = Vec::new();
        for row in 0..rows {
            for head in 0..self.heads() {
                let at = |token: usize| (row * key_heads + head / self.group) * room + token;
                let query = &own.query[(row * self.heads() + head) * width..][..width];
                let score = |token: usize| {
                    let key = &keys[at(token) * width..][..width];
                    let dot: f64 = query.iter().zip(key).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    let score = dot * f64::from(0.3f32);
                    self.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let weights: Vec<f64> = (own.first..=own.at).map(|token| score(token).exp()).collect();
                let sink = self.sinks().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let total = weights.iter().sum::<f64>() + sink;
                for place in 0..self.value_width {
                    let weighted = |(token, weight): (usize, &f64)| {
                        weight * f64::from(values[at(own.first + token) * self.value_width + place])
                    };
                    out.push(weights.iter().enumerate().map(weighted).sum::<f64>() / total);
                }
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn it_is_what_a_slow_one_in_doubles_says(case in case()) {
        let order: Vec<usize> = (0..case.sessions.len()).collect();
        let level = *Level::available().first().unwrap();
        for (number, (bits, ..)) in case.run(level, &order, 1).into_iter().enumerate() {
            for (ours, slow) in bits.iter().zip(case.slowly(number)) {
                let ours = f64::from(f32::from_bits(*ours));
                prop_assert!((ours - slow).abs() <= rounding(case.dtype) * slow.abs() + 2e-6, "{ours} {slow}");
            }
        }
    }

    #[test]
    fn a_session_gets_the_same_bits_in_any_company(case in case(), threads in 1usize..5) {
        let level = *Level::available().first().unwrap();
        let forwards: Vec<usize> = (0..case.sessions.len()).collect();
        let backwards: Vec<usize> = forwards.iter().rev().copied().collect();
        let mut turned = case.run(level, &backwards, threads);
        turned.reverse();
        for (number, company) in case.run(level, &forwards, 1).into_iter().enumerate() {
            prop_assert!(company == turned[number]);
            prop_assert!(company == case.run(level, &[number], 1)[0]);
        }
    }

    #[test]
    fn all_levels_give_the_same_bits(case in case()) {
        let order: Vec<usize> = (0..case.sessions.len()).collect();
        let levels = Level::available();
        let expected = case.run(*levels.last().unwrap(), &order, 1);
        for level in levels {
            prop_assert!(case.run(level, &order, 1) == expected, "{level:?}");
        }
    }
}

fn plain(sessions: Vec<(usize, usize, usize)>) -> Case {
    Case {
        dtype: Dtype::F32,
        key_heads: 2,
        group: 3,
        width: 64,
        value_width: 64,
        soft_cap: None,
        sinks: false,
        sessions,
        seed: 3,
    }
}

#[test]
fn long_rooms_are_shared_between_threads_without_a_change() {
    let case = plain((0..24).map(|number| (1, 900 + number, number)).collect());
    let order: Vec<usize> = (0..24).collect();
    let level = *Level::available().first().unwrap();
    let alone = case.run(level, &order, 1);
    for threads in [2, 3, 8] {
        assert!(case.run(level, &order, threads) == alone);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = plain(vec![(1, 5, 0)]);
    let mut own = case.own(0);
    let mut packed = Tensor::zeros(Dtype::F32, [1, 6, 1, 64]);
    let (mut few, mut out) =
        (Tensor::zeros(Dtype::F32, [1, 2, 1, 64]), Tensor::zeros(Dtype::F32, [1, 1, 6, 64]));
    let all = Attention {
        queries: packed.view(),
        keys: few.view(),
        values: few.view(),
        out: out.view(),
        scale: 1.0,
        soft_cap: None,
        sinks: None,
    };
    let session = Session { keys: own.keys.view(), values: own.values.view(), token: 0, at: 5, first: 0 };
    assert_eq!(attend(&all, &[session], 1).is_ok(), Level::best().is_some());
    let level = *Level::available().first().unwrap();
    let refused = |all: &Attention<'_>, sessions: &[Session]| {
        assert!(matches!(attend_on(level, all, sessions, 1), Err(KernelError::Unfit(_))));
    };
    refused(&all, &[Session { at: 9, ..session }]);
    refused(&all, &[Session { first: 6, ..session }]);
    refused(&all, &[Session { token: 1, ..session }]);
    refused(&all, &[Session { token: usize::MAX, ..session }]);
    refused(&all, &[session, session]);
    refused(&Attention { out: packed.view(), ..all }, &[session]);
    refused(&Attention { keys: packed.view(), ..all }, &[session]);
    refused(&Attention { sinks: Some(&[0.0]), ..all }, &[session]);
    let mut other = Tensor::zeros(Dtype::Bf16, out.shape);
    refused(&Attention { out: other.view(), ..all }, &[session]);
}

#[test]
fn nothing_that_is_not_a_number_is_lost() {
    let case = plain(vec![(1, 40, 0)]);
    let mut own = case.own(0);
    let [_, heads, room, width] = own.keys.shape;
    let mut keys = vec![0.5; heads * room * width];
    keys[3 * width] = f32::NAN;
    own.keys = Tensor::of(Dtype::F32, own.keys.shape, &keys);
    let mut packed = Tensor::noise(Dtype::F32, [1, 6, 1, 64], 1);
    let (mut few, mut out) =
        (Tensor::zeros(Dtype::F32, [1, 2, 1, 64]), Tensor::zeros(Dtype::F32, [1, 1, 6, 64]));
    let all = Attention {
        queries: packed.view(),
        keys: few.view(),
        values: few.view(),
        out: out.view(),
        scale: 1.0,
        soft_cap: None,
        sinks: None,
    };
    let session = Session { keys: own.keys.view(), values: own.values.view(), token: 0, at: 40, first: 0 };
    for level in Level::available() {
        attend_on(level, &all, &[session], 1).unwrap();
        let values = out.values();
        assert!(values[..3 * width].iter().all(|value| value.is_nan()));
        assert!(values[3 * width..].iter().all(|value| value.is_finite()));
    }
}
