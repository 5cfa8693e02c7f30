//! One feature's values in a step, by type. It knows nothing of frames.

use zunft_protocol::embodiment::Dtype;

/// One feature's values, in row-major order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values<'a> {
    /// For a feature of dtype `f32`.
    F32(&'a [f32]),
    /// For a feature of dtype `f64`.
    F64(&'a [f64]),
    /// For a feature of dtype `i64`.
    I64(&'a [i64]),
    /// For a feature of dtype `u8`, an image for example.
    U8(&'a [u8]),
}

impl Values<'_> {
    /// Their type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            Self::I64(_) => Dtype::I64,
            Self::U8(_) => Dtype::U8,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::F32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::I64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::U8(values) => out.extend_from_slice(values),
        }
    }
}

macro_rules! from_arrays {
    ($($value:ty => $variant:ident,)*) => {$(
        impl<'a> From<&'a [$value]> for Values<'a> {
            fn from(values: &'a [$value]) -> Self {
                Self::$variant(values)
            }
        }

        impl<'a, const N: usize> From<&'a [$value; N]> for Values<'a> {
            fn from(values: &'a [$value; N]) -> Self {
                Self::$variant(values)
            }
        }

        impl<'a> From<&'a Vec<$value>> for Values<'a> {
            fn from(values: &'a Vec<$value>) -> Self {
                Self::$variant(values)
            }
        }
    )*};
}

from_arrays! {
    f32 => F32,
    f64 => F64,
    i64 => I64,
    u8 => U8,
}
