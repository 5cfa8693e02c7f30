//! Vectors in space as plain arrays: metres, x and y along the table, z up.

pub(crate) fn plus(left: [f32; 3], right: [f32; 3]) -> [f32; 3] {
    std::array::from_fn(|axis| left[axis] + right[axis])
}

pub(crate) fn minus(left: [f32; 3], right: [f32; 3]) -> [f32; 3] {
    std::array::from_fn(|axis| left[axis] - right[axis])
}

pub(crate) fn scaled(vector: [f32; 3], factor: f32) -> [f32; 3] {
    vector.map(|part| part * factor)
}

pub(crate) fn dot(left: [f32; 3], right: [f32; 3]) -> f32 {
    left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
}

pub(crate) fn length(vector: [f32; 3]) -> f32 {
    dot(vector, vector).sqrt()
}

/// `vector` without its height.
pub(crate) fn flat(vector: [f32; 3]) -> [f32; 3] {
    [vector[0], vector[1], 0.0]
}

/// `vector`, shortened to `limit` if it is longer.
pub(crate) fn at_most(vector: [f32; 3], limit: f32) -> [f32; 3] {
    let length = length(vector);
    if length > limit { scaled(vector, limit / length) } else { vector }
}
