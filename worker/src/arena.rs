//! The KV arena: keys and values of every layer, in blocks that sequences are given by the
//! gateway.

use std::io;

use crate::kernels::{Attention, Element, Zeroed};

/// Keys and values of `blocks` blocks in every layer. Pages that no block has touched yet take
/// no memory.
pub struct Arena<T> {
    layers: Vec<(Zeroed<T>, Zeroed<T>)>,
}

impl<T: Element> Arena<T> {
    /// Reserves the address space.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(layers: usize, shape: &Attention, blocks: usize) -> io::Result<Arena<T>> {
        let layer = |_| {
            let keys = Zeroed::new(blocks * shape.key_block())?;
            Ok((keys, Zeroed::new(blocks * shape.value_block())?))
        };
        Ok(Arena {
            layers: (0..layers).map(layer).collect::<io::Result<_>>()?,
        })
    }

    /// Makes it as it was at first.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn clear(&mut self) -> io::Result<()> {
        for (keys, values) in &mut self.layers {
            keys.clear()?;
            values.clear()?;
        }
        Ok(())
    }

    /// Bytes that one block takes in all layers.
    pub fn block_bytes(layers: usize, shape: &Attention) -> usize {
        layers * (shape.key_block() + shape.value_block()) * size_of::<T>()
    }

    /// Keys and values of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&mut self, layer: usize) -> (&mut [T], &mut [T]) {
        let (keys, values) = &mut self.layers[layer];
        (keys.as_mut_slice(), values.as_mut_slice())
    }
}
