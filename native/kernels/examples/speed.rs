//! Decode steps of many sessions, as one block of a small model asks for them, and how long they take:
//! `cargo run --release -p swarmnode-kernels --example speed`.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::single_range_in_vec_init
)] // a look at figures

use std::time::Instant;
use swarmnode_kernels::{Attention, Dtype, Level, Session, View, attend_on, linear_on};

const BLOCKS: usize = 30;
const HEADS: [usize; 3] = [9, 3, 64];
const ROOM: usize = 128;
const SEEN: usize = 66;

fn view(values: &mut [f32], shape: [usize; 4]) -> View {
    let [_, b, c, d] = shape;
    assert_eq!(values.len(), shape.iter().product::<usize>());
    // SAFETY: the strides are those of the shape, and the vector outlives the calls below.
    unsafe { View::new(values.as_mut_ptr().cast(), Dtype::F32, shape, [b * c * d, c * d, d, 1]) }.unwrap()
}

/// Where tensors begin: at a cache line.
fn aligned(count: usize) -> &'static mut [f32] {
    let values = vec![0.5; count + 16].leak();
    let skipped = values.as_ptr().align_offset(64);
    &mut values[skipped..skipped + count]
}

fn best(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..12 {
        let begun = Instant::now();
        run();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[2]
}

fn main() {
    let [heads, key_heads, width] = HEADS;
    for level in Level::available().into_iter().filter(|level| format!("{level:?}") != "portable") {
        for threads in [1, 2] {
            for sessions in [1, 8, 32] {
                let mut rooms: Vec<[&mut [f32]; 2]> = (0..BLOCKS * sessions)
                    .map(|_| [(); 2].map(|()| aligned(key_heads * ROOM * width)))
                    .collect();
                let mut packed =
                    [heads, key_heads, key_heads, heads].map(|heads| vec![0.1f32; heads * sessions * width]);
                let [queries, keys, values, out] = &mut packed;
                let all = Attention {
                    queries: view(queries, [1, heads, sessions, width]),
                    keys: view(keys, [1, key_heads, sessions, width]),
                    values: view(values, [1, key_heads, sessions, width]),
                    out: view(out, [1, sessions, heads, width]),
                    scale: 0.125,
                    soft_cap: None,
                    sinks: None,
                };
                let blocks: Vec<Vec<Session>> = rooms
                    .chunks_mut(sessions)
                    .map(|rooms| {
                        let one = |(token, [keys, values]): (usize, &mut [&mut [f32]; 2])| Session {
                            keys: view(keys, [1, key_heads, ROOM, width]),
                            values: view(values, [1, key_heads, ROOM, width]),
                            token,
                            at: SEEN - 1,
                            first: 0,
                        };
                        rooms.iter_mut().enumerate().map(one).collect()
                    })
                    .collect();
                let time =
                    best(|| blocks.iter().for_each(|each| attend_on(level, &all, each, threads).unwrap()));
                println!(
                    "{level:?} threads {threads} attention of {sessions} sessions, ms a pass: {time:.2}"
                );
            }
            let shapes =
                [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
            let mut weights: Vec<(&mut [f32], usize, usize)> =
                (0..BLOCKS).flat_map(|_| shapes.map(|(n, k)| (aligned(n * k), n, k))).collect();
            for rows in [1, 2, 4, 8, 16, 32, 128] {
                let (mut given, mut out) = (vec![0.1f32; rows * 1536], vec![0.0f32; rows * 1536]);
                let time = best(|| {
                    for (weights, n, k) in &mut weights {
                        let given = view(&mut given[..rows * *k], [1, 1, rows, *k]);
                        let out = view(&mut out[..rows * *n], [1, 1, rows, *n]);
                        linear_on(
                            level,
                            &given,
                            &view(weights, [1, 1, *n, *k]),
                            None,
                            &out,
                            &[0..rows],
                            threads,
                        )
                        .unwrap();
                    }
                });
                println!("{level:?} threads {threads} linear layers of {rows} rows, ms a pass: {time:.1}");
            }
        }
    }
}
