//! The dtypes as types, so that a loop over values is compiled for each.

use crate::isa::{Isa, LANES};
use swarmnode_codec::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// A dtype of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Singles.
    F32,
    /// IEEE halves.
    F16,
    /// The upper halves of singles.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 | Self::Bf16 => size_of::<u16>(),
        }
    }
}

/// A value of a dtype, as it is in memory.
pub(crate) trait Element: Copy + Send + Sync {
    const DTYPE: Dtype;
    const ZERO: Self;

    fn load<I: Isa>(isa: I, values: &[Self; LANES]) -> I::V;
    fn widen(self) -> f32;
    /// The nearest value, ties to even.
    fn narrow(value: f32) -> Self;

    /// Fewer than sixteen, with zeros behind them.
    #[inline(always)]
    fn load_some<I: Isa>(isa: I, values: &[Self]) -> I::V {
        let mut whole = [Self::ZERO; LANES];
        whole.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        Self::load(isa, &whole)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<I: Isa>(isa: I, values: &[Self; LANES]) -> I::V {
        isa.load(values)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

macro_rules! half {
    ($name:ident, $dtype:ident, $load:ident, $widen:ident, $narrow:ident, $nan:literal) => {
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub(crate) struct $name(u16);

        impl Element for $name {
            const DTYPE: Dtype = Dtype::$dtype;
            const ZERO: Self = Self(0);

            #[inline(always)]
            fn load<I: Isa>(isa: I, values: &[Self; LANES]) -> I::V {
                isa.$load(&values.map(|value| value.0))
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self.0)
            }
            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self(if value.is_nan() { $nan } else { $narrow(value) })
            }
        }
    };
}

half!(F16, F16, load_f16, f16_to_f32, f32_to_f16, 0x7E00);
half!(Bf16, Bf16, load_bf16, bf16_to_f32, f32_to_bf16, 0x7FC0);
