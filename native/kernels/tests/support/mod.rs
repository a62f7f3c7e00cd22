//! Tensors for tests, from a seed, in any dtype.
#![allow(dead_code, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // may fail loudly

use swarmnode_codec::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use swarmnode_kernels::{Dtype, View};

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// A tensor that owns its memory.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: [usize; 4],
    words: Vec<u32>,
}

/// Numbers between -1 and 1, the same ones for a seed.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Tensor {
    pub fn of(dtype: Dtype, shape: [usize; 4], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        let mut tensor = Self { dtype, shape, words: vec![0; values.len() + 1] };
        for (index, value) in values.iter().enumerate() {
            // SAFETY: the words have room for all values, whatever their size.
            unsafe {
                match dtype {
                    Dtype::F32 => tensor.words.as_mut_ptr().cast::<f32>().add(index).write(*value),
                    Dtype::F16 => {
                        tensor.words.as_mut_ptr().cast::<u16>().add(index).write(f32_to_f16(*value))
                    }
                    Dtype::Bf16 => {
                        tensor.words.as_mut_ptr().cast::<u16>().add(index).write(f32_to_bf16(*value))
                    }
                }
            }
        }
        tensor
    }

    pub fn noise(dtype: Dtype, shape: [usize; 4], seed: u64) -> Self {
        Self::of(dtype, shape, &noise(seed, shape.iter().product()))
    }

    pub fn zeros(dtype: Dtype, shape: [usize; 4]) -> Self {
        Self::of(dtype, shape, &vec![0.0; shape.iter().product()])
    }

    pub fn values(&self) -> Vec<f32> {
        let count = self.shape.iter().product();
        let read = |index: usize| {
            // SAFETY: as in `of`.
            unsafe {
                match self.dtype {
                    Dtype::F32 => self.words.as_ptr().cast::<f32>().add(index).read(),
                    Dtype::F16 => f16_to_f32(self.words.as_ptr().cast::<u16>().add(index).read()),
                    Dtype::Bf16 => bf16_to_f32(self.words.as_ptr().cast::<u16>().add(index).read()),
                }
            }
        };
        (0..count).map(read).collect()
    }

    pub fn bits(&self) -> Vec<u32> {
        self.values().into_iter().map(f32::to_bits).collect()
    }

    /// All of it.
    pub fn view(&mut self) -> View {
        let [_, b, c, d] = self.shape;
        self.strided([b * c * d, c * d, d, 1], self.shape, 0)
    }

    /// A part of it, `skipped` values from its begin.
    pub fn strided(&mut self, strides: [usize; 4], shape: [usize; 4], skipped: usize) -> View {
        let start = self.words.as_mut_ptr().cast::<u8>().wrapping_add(skipped * self.dtype.bytes());
        // SAFETY: tests ask for what is there, and hold the tensor while they use the view.
        unsafe { View::new(start, self.dtype, shape, strides) }.unwrap()
    }
}

/// How far rounding to a dtype may be off, relative to the value.
pub fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-6,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 8e-3,
    }
}
