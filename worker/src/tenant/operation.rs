//! What can be computed with tensors: checked here, done by libtorch.
//!
//! A tenant's code must not get libtorch to do what it was not made to be asked by strangers. So every
//! shape and every index is checked before, and an error that comes from libtorch all the same is one
//! of the tenant's, too.

use std::cell::Cell;

use tch::{Kind, TchError, Tensor};

pub(super) use super::contract::program::realm::program::tensors::Operation;

/// Most numbers of a tensor, its most dimensions, and how many tensors may be put together.
const NUMBERS: i64 = 1 << 22;
const DIMENSIONS: usize = 4;
const CONCATENATED: usize = 64;
/// Most multiplications of a product, which no turns are taken in.
const MULTIPLICATIONS: i64 = 1 << 26;

/// The extent of each dimension: at least one dimension, and no extent is 0.
pub(super) type Shape = Vec<i64>;

/// A shape that there can be.
pub(super) fn shape(extents: &[u32]) -> Result<Shape, String> {
    possible(extents.iter().map(|extent| i64::from(*extent)).collect())
}

fn possible(shape: Shape) -> Result<Shape, String> {
    if shape.len() > DIMENSIONS {
        let given = shape.len();
        return Err(format!(
            "a tensor of {given} dimensions: there are at most {DIMENSIONS}"
        ));
    }
    let count = shape
        .iter()
        .try_fold(1i64, |count, extent| count.checked_mul(*extent));
    let fits = count.is_some_and(|count| (1..=NUMBERS).contains(&count));
    match fits && !shape.is_empty() {
        true => Ok(shape),
        false => Err(format!(
            "a tensor of shape {shape:?}: there are at most {DIMENSIONS} dimensions, and 1 to {NUMBERS} numbers"
        )),
    }
}

impl Operation {
    /// Bytes of what it works with beside tensors.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Operation::Gather(words) | Operation::Mask(words) | Operation::Reshape(words) => {
                size_of_val(&**words) as u64
            }
            _ => 0,
        }
    }
}

/// How many numbers there are.
pub(super) fn count(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// The shape of what an operation makes of tensors of these shapes, if it can.
pub(super) fn result(operation: &Operation, of: &[&[i64]]) -> Result<Shape, String> {
    use Operation as O;
    let wrong = || format!("`{}` of {of:?}", name(operation));
    match (operation, of) {
        (
            O::Add | O::Subtract | O::Multiply | O::Divide | O::Maximum | O::Minimum | O::Where,
            [a, b],
        ) => possible(broadcast(a, b).ok_or_else(wrong)?),
        (O::Matmul, [[m, k], [l, n]]) if k == l => {
            let product = possible(vec![*m, *n])?;
            match count(&product).checked_mul(*k) {
                Some(work) if work <= MULTIPLICATIONS => Ok(product),
                _ => Err(format!(
                    "{} is more than {MULTIPLICATIONS} multiplications",
                    wrong()
                )),
            }
        }
        (O::Exp | O::Log | O::Softmax | O::LogSoftmax, [a]) => Ok(a.to_vec()),
        (O::Scale(by) | O::Shift(by), [a]) => match by.is_nan() {
            false => Ok(a.to_vec()),
            true => Err(format!("{} by no number", wrong())),
        },
        (O::Sum | O::Mean | O::Max | O::Norm, [[rest @ .., _]]) => Ok([rest, &[1]].concat()),
        (O::Gather(places), [[rest @ .., last]]) => {
            let outside = places.iter().find(|place| i64::from(**place) >= *last);
            if let Some(place) = outside {
                return Err(format!("{} at {place}", wrong()));
            }
            let places = i64::try_from(places.len()).unwrap_or(i64::MAX);
            possible([rest, &[places]].concat())
        }
        (O::Mask(_), [a]) => Ok(a.to_vec()),
        (O::Reshape(extents), [a]) => {
            let into = shape(extents)?;
            match count(&into) == count(a) {
                true => Ok(into),
                false => Err(format!("{} into {into:?}", wrong())),
            }
        }
        (O::Transpose, [[m, n]]) => Ok(vec![*n, *m]),
        (O::Slice((dimension, place, length)), [a]) => {
            let mut slice = a.to_vec();
            let extent = slice.get_mut(*dimension as usize).ok_or_else(wrong)?;
            let (place, length) = (i64::from(*place), i64::from(*length));
            if length == 0 || place + length > *extent {
                return Err(format!("{} with {length} from {place} on", wrong()));
            }
            *extent = length;
            Ok(slice)
        }
        (O::Concat(dimension), [first, ..]) if of.len() <= CONCATENATED => {
            let (mut whole, at) = (first.to_vec(), *dimension as usize);
            *whole.get_mut(at).ok_or_else(wrong)? = 0;
            for part in of {
                let mut others = part.to_vec();
                let extent = std::mem::take(others.get_mut(at).ok_or_else(wrong)?);
                let sum = std::mem::take(&mut whole[at]);
                if others != whole {
                    return Err(wrong());
                }
                whole[at] = sum + extent;
            }
            possible(whole)
        }
        (_, many) if many.len() > CONCATENATED => Err(format!(
            "`{}` of {} tensors: there are at most {CONCATENATED}",
            name(operation),
            many.len()
        )),
        _ => Err(wrong()),
    }
}

/// The shape of two tensors together, where extents of 1 are repeated.
fn broadcast(a: &[i64], b: &[i64]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let extent =
        |shape: &[i64], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let both = (0..rank).map(|i| match (extent(a, i), extent(b, i)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    });
    both.collect()
}

fn name(operation: &Operation) -> String {
    let name = format!("{operation:?}");
    // Without what it is to work with, which may be long.
    let end = name.find('(').unwrap_or(name.len());
    let name = name[..end].rsplit("::").next().unwrap_or_default();
    name.chars()
        .enumerate()
        .flat_map(|(i, c)| {
            let dash = (i > 0 && c.is_ascii_uppercase()).then_some('-');
            dash.into_iter().chain([c.to_ascii_lowercase()])
        })
        .collect()
}

/// Computes, in this thread alone, what [`result`] found possible.
pub(super) fn compute(operation: &Operation, of: &[Tensor]) -> Result<Tensor, String> {
    thread_local! {
        static ALONE: Cell<bool> = const { Cell::new(false) };
    }
    if !ALONE.replace(true) {
        // What a tenant computes is to count as its processor time, all of it.
        tch::set_num_threads(1);
    }
    let computed = tch::no_grad(|| of_torch(operation, of));
    computed.map_err(|error| {
        let line = error.to_string();
        let line = line.lines().next().unwrap_or_default();
        format!("`{}` failed: {line}", name(operation))
    })
}

fn of_torch(operation: &Operation, of: &[Tensor]) -> Result<Tensor, TchError> {
    use Operation as O;
    const LAST: i64 = -1;
    let wrong = || TchError::Shape("another number of tensors".into());
    let a = of.first().ok_or_else(wrong)?;
    let b = || of.get(1).ok_or_else(wrong);
    let float = Kind::Float;
    let minus_infinity = f64::NEG_INFINITY;
    match operation {
        O::Add => a.f_add(b()?),
        O::Subtract => a.f_sub(b()?),
        O::Multiply => a.f_mul(b()?),
        O::Divide => a.f_div(b()?),
        O::Maximum => a.f_maximum(b()?),
        O::Minimum => a.f_minimum(b()?),
        O::Where => {
            let not = a.f_ge(0.0)?.f_logical_not()?;
            // Both may have to be repeated, and a mask alone is.
            let whole = b()?.f_add(&a.f_zeros_like()?)?;
            whole.f_masked_fill(&not, minus_infinity)
        }
        O::Matmul => a.f_matmul(b()?),
        O::Scale(by) => a.f_mul_scalar(f64::from(*by)),
        O::Shift(by) => a.f_add_scalar(f64::from(*by)),
        O::Exp => a.f_exp(),
        O::Log => a.f_log(),
        O::Softmax => a.f_softmax(LAST, float),
        O::LogSoftmax => a.f_log_softmax(LAST, float),
        O::Sum => a.f_sum_dim_intlist([LAST].as_slice(), true, float),
        O::Mean => a.f_mean_dim([LAST].as_slice(), true, float),
        O::Max => a.f_amax([LAST].as_slice(), true),
        O::Norm => a.f_norm_scalaropt_dim(2.0, [LAST].as_slice(), true),
        O::Gather(places) => {
            let places: Vec<i64> = places.iter().map(|place| i64::from(*place)).collect();
            a.f_index_select(LAST, &Tensor::f_from_slice(&places)?)
        }
        O::Mask(words) => {
            let extent = a.size().last().copied().unwrap_or(0);
            let gone = |i: i64| {
                let word = words.get(i as usize / 32).copied().unwrap_or(0);
                word >> (i % 32) & 1 == 0
            };
            let gone: Vec<bool> = (0..extent).map(gone).collect();
            a.f_masked_fill(&Tensor::f_from_slice(&gone)?, minus_infinity)
        }
        O::Reshape(extents) => {
            let shape: Shape = extents.iter().map(|extent| i64::from(*extent)).collect();
            a.f_reshape(shape)
        }
        O::Transpose => a.f_transpose(0, 1),
        O::Slice((dimension, place, length)) => {
            let slice = a.f_narrow(i64::from(*dimension), (*place).into(), (*length).into())?;
            // Of its own: else it would keep all of the whole.
            slice.f_mul_scalar(1.0)
        }
        O::Concat(dimension) => Tensor::f_cat(of, (*dimension).into()),
    }
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
