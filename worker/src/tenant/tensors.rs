//! Tensors in the hands of a program.
//!
//! They are there as soon as they are made, but for a program that runs anew after its worker died: the
//! logits and hidden states that it had before are computed again only if something that is not in its
//! journal depends on them, and so is what it made of them. What it read of them is in its journal.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use realm_shared::wire::Fault;
use wasmtime::component::Resource;

use super::Failure;
use super::answering::Run;
use super::contract::program::realm::program::tensors::{Host, HostTensor};
use super::handles::hold;
use super::lanes::take_turns;
use super::lease::Sight;
use super::operation::{Operation, Shape, compute, count, result, shape};
use super::sequences::{Wanted, plan};

/// Most numbers that are read at once, and of which the largest are asked for.
const READ: i64 = 1 << 16;
const TOP: u32 = 1024;
/// Most steps from a tensor back to what the model is to compute. A program that goes farther has it
/// computed.
const DEPTH: u32 = 64;

/// A tensor that the program holds. Its bytes count for as long as it does.
#[expect(
    unreachable_pub,
    reason = "what is generated names it as if it were public"
)]
pub struct Tensor {
    value: Arc<Value>,
    /// Bytes that count for what its value is to be computed from.
    kept: u64,
}

impl Tensor {
    pub(super) fn value(&self) -> Arc<Value> {
        self.value.clone()
    }

    fn bytes(&self) -> u64 {
        bytes(&self.value.shape)
    }
}

fn bytes(shape: &[i64]) -> u64 {
    count(shape).unsigned_abs() * size_of::<f32>() as u64
}

/// What is in a tensor.
pub(super) struct Value {
    shape: Shape,
    /// Steps from here back to what the model is to compute.
    depth: u32,
    /// Bytes, beside its own numbers, of what it is to be computed from; 0 if it is there from the beginning.
    keeps: u64,
    content: Mutex<Content>,
}

enum Content {
    Here(tch::Tensor),
    /// What the model computes for a sequence as it was.
    Sight(Wanted, Sight),
    /// What comes of others.
    Result(Operation, Vec<Arc<Value>>),
}

impl Value {
    fn new(shape: Shape, depth: u32, keeps: u64, content: Content) -> Arc<Value> {
        Arc::new(Value {
            shape,
            depth,
            keeps,
            content: Mutex::new(content),
        })
    }

    fn here_from_now_on(shape: Shape, numbers: tch::Tensor) -> Arc<Value> {
        Value::new(shape, 0, 0, Content::Here(numbers))
    }

    /// What comes of others that are not all there.
    fn result_of(operation: Operation, of: Vec<Arc<Value>>, shape: Shape) -> Arc<Value> {
        let depth = of.iter().map(|value| value.depth).max().unwrap_or(0);
        let keeps = of
            .iter()
            .map(|value| value.keeps.saturating_add(bytes(&value.shape)))
            .fold(operation.bytes(), u64::saturating_add);
        Value::new(shape, depth + 1, keeps, Content::Result(operation, of))
    }

    /// These numbers.
    pub(super) fn of(numbers: &[f32], shape: &[i64]) -> Result<Arc<Value>, Failure> {
        let made = tch::Tensor::f_from_slice(numbers).and_then(|made| made.f_reshape(shape));
        let made = made.map_err(|error| plan(format!("no tensor could be made: {error}")))?;
        Ok(Value::here_from_now_on(shape.to_vec(), made))
    }

    /// What the model computes for a sequence, when it is needed.
    pub(super) fn sight_of(wanted: Wanted, sight: Sight, shape: Shape) -> Arc<Value> {
        let keeps = wanted.bytes();
        Value::new(shape, 1, keeps, Content::Sight(wanted, sight))
    }

    pub(super) fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn content<T>(&self, look: impl FnOnce(&mut Content) -> T) -> T {
        look(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tensor, if it is there.
    fn here(&self) -> Option<tch::Tensor> {
        self.content(|content| match content {
            Content::Here(tensor) => Some(tensor.shallow_clone()),
            _ => None,
        })
    }

    /// What this depends on and the model is to compute, each once.
    fn missing(self: &Arc<Value>) -> Vec<Arc<Value>> {
        let mut found = Vec::new();
        let mut next = vec![self.clone()];
        // By many ways the same may be come to, and by twice as many with each step.
        let mut met = HashSet::new();
        while let Some(value) = next.pop() {
            if !met.insert(Arc::as_ptr(&value)) {
                continue;
            }
            let sight = value.content(|content| match content {
                Content::Here(_) => false,
                Content::Sight(..) => true,
                Content::Result(_, of) => {
                    // The first of them is looked at first.
                    next.extend(of.iter().rev().cloned());
                    false
                }
            });
            if sight {
                found.push(value);
            }
        }
        found
    }

    /// The tensor; all that the model computes for it is there.
    fn computed(&self) -> Result<tch::Tensor, Failure> {
        if let Some(here) = self.here() {
            return Ok(here);
        }
        let made_of = self.content(|content| match content {
            Content::Result(operation, of) => Some((operation.clone(), of.clone())),
            _ => None,
        });
        let (operation, of) = made_of.ok_or_else(|| plan("a tensor is not there"))?;
        let of: Vec<_> = of
            .iter()
            .map(|value| value.computed())
            .collect::<Result<_, _>>()?;
        let tensor = compute(&operation, &of).map_err(plan)?;
        self.content(|content| *content = Content::Here(tensor.shallow_clone()));
        Ok(tensor)
    }
}

impl Run {
    /// Has the program hold a tensor. One that would keep too much of what it is to be computed from is computed.
    pub(super) async fn add_tensor(
        &mut self,
        mut value: Arc<Value>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        if value.depth > DEPTH || value.keeps > self.kept_room {
            let made = self.fetch(&value).await?;
            value = Value::here_from_now_on(value.shape.clone(), made);
        }
        self.hold_tensor(value)
    }

    fn hold_tensor(&mut self, value: Arc<Value>) -> wasmtime::Result<Resource<Tensor>> {
        self.has_room(&value.shape)?;
        let kept = value.keeps;
        let tensor = Tensor { value, kept };
        let bytes = tensor.bytes();
        let handle = hold(&mut self.tensors, tensor, Fault::Tensors, "tensors")?;
        self.tensor_room -= bytes;
        self.kept_room -= kept;
        Ok(handle)
    }

    /// Whether it may have another tensor of this shape: asked before that is made.
    fn has_room(&self, shape: &[i64]) -> Result<(), Failure> {
        if bytes(shape) > self.tensor_room {
            let most = self.limits.tensors;
            let message = format!("its tensors need more than {most} bytes");
            return Err(Failure::new(Fault::Tensors, message));
        }
        Ok(())
    }

    /// Sees to it that a tensor is there.
    async fn fetch(&mut self, value: &Arc<Value>) -> wasmtime::Result<tch::Tensor> {
        for leaf in value.missing() {
            let wanted = leaf.content(|content| match content {
                Content::Sight(wanted, sight) => Some((wanted.clone(), *sight)),
                _ => None,
            });
            if let Some((wanted, sight)) = wanted {
                let numbers = self.sight_of(wanted, sight).await?;
                let made = Value::of(&numbers, &leaf.shape)?;
                let made = made.here().ok_or_else(|| plan("a tensor is not there"))?;
                leaf.content(|content| *content = Content::Here(made));
                self.guest.meter.begin_stretch();
            }
        }
        Ok(value.computed()?)
    }

    /// The numbers of a tensor.
    pub(super) async fn numbers(&mut self, value: &Arc<Value>) -> wasmtime::Result<Vec<f32>> {
        let all = self.fetch(value).await?;
        let numbers = all.f_reshape([-1]).and_then(|all| Vec::try_from(&all));
        Ok(numbers.map_err(|error| plan(format!("a tensor could not be read: {error}")))?)
    }

    fn value(&self, handle: &Resource<Tensor>) -> wasmtime::Result<Arc<Value>> {
        Ok(self.tensors.get(handle)?.value())
    }
}

impl Host for Run {
    async fn apply(
        &mut self,
        operation: Operation,
        tensors: Vec<Resource<Tensor>>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        let of = tensors.iter().map(|handle| self.value(handle));
        let of: Vec<_> = of.collect::<wasmtime::Result<_>>()?;
        let shapes: Vec<_> = of.iter().map(|value| value.shape()).collect();
        let shape = result(&operation, &shapes).map_err(plan)?;
        self.has_room(&shape)?;
        let here: Option<Vec<_>> = of.iter().map(|value| value.here()).collect();
        let value = match here {
            Some(here) => {
                let made = compute(&operation, &here).map_err(plan)?;
                Value::here_from_now_on(shape, made)
            }
            None => Value::result_of(operation, of, shape),
        };
        self.add_tensor(value).await
    }
}

impl HostTensor for Run {
    fn new(&mut self, extents: Vec<u32>, values: Vec<f32>) -> wasmtime::Result<Resource<Tensor>> {
        let shape = shape(&extents).map_err(plan)?;
        if count(&shape).unsigned_abs() != values.len() as u64 {
            let given = values.len();
            return Err(plan(format!("a tensor of shape {shape:?} from {given} numbers")).into());
        }
        self.has_room(&shape)?;
        self.hold_tensor(Value::of(&values, &shape)?)
    }

    fn shape(&mut self, this: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        let value = self.value(&this)?;
        let extents = value
            .shape()
            .iter()
            .map(|extent| u32::try_from(*extent).unwrap_or(u32::MAX));
        Ok(extents.collect())
    }

    async fn read(&mut self, this: Resource<Tensor>) -> wasmtime::Result<Vec<f32>> {
        let value = self.value(&this)?;
        let numbers = count(value.shape());
        if numbers > READ {
            return Err(plan(format!("`read` of {numbers} numbers, more than {READ}")).into());
        }
        if let Some(seen) = self.saw() {
            take_turns().await;
            return Ok(seen.into_iter().map(f32::from_bits).collect());
        }
        let numbers = self.numbers(&value).await?;
        let words: Vec<_> = numbers.iter().map(|number| number.to_bits()).collect();
        self.sees(&words)?;
        Ok(numbers)
    }

    async fn top(
        &mut self,
        this: Resource<Tensor>,
        most: u32,
    ) -> wasmtime::Result<Vec<(u32, f32)>> {
        if most > TOP {
            return Err(plan(format!("`top` of {most} numbers, more than {TOP}")).into());
        }
        let value = self.value(&this)?;
        if let Some(seen) = self.saw() {
            take_turns().await;
            let pairs = seen.as_chunks().0.iter();
            return Ok(pairs
                .map(|[place, bits]| (*place, f32::from_bits(*bits)))
                .collect());
        }
        let numbers = self.numbers(&value).await?;
        let mut placed: Vec<(u32, f32)> = (0..)
            .zip(numbers)
            .filter(|(_, number)| !number.is_nan())
            .collect();
        let most = (most as usize).min(placed.len());
        let larger = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if 0 < most && most < placed.len() {
            placed.select_nth_unstable_by(most - 1, larger);
        }
        placed.truncate(most);
        placed.sort_unstable_by(larger);
        let words = placed
            .iter()
            .flat_map(|(place, number)| [*place, number.to_bits()]);
        self.sees(&words.collect::<Vec<_>>())?;
        Ok(placed)
    }

    fn drop(&mut self, this: Resource<Tensor>) -> wasmtime::Result<()> {
        let tensor = self.tensors.delete(this)?;
        self.tensor_room += tensor.bytes();
        self.kept_room += tensor.kept;
        Ok(())
    }
}
