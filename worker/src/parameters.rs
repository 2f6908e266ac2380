//! The parameters of a decoder: what checkpoints call them, what shapes they have, and which of them are one matrix.

use crate::config::DecoderConfig;
use crate::kernels::Element;
use crate::weights::{View, Weights, WeightsError};

/// All weights of a decoder, wherever they are held: matrices as `M`, vectors as `V`.
pub struct DecoderWeights<M, V> {
    /// `[vocab, hidden]`
    pub embedding: M,
    /// The same shape; None if it is the embedding.
    pub head: Option<M>,
    /// In the order of the pass.
    pub layers: Vec<LayerWeights<M, V>>,
    /// Before the head, `[hidden]`.
    pub norm: V,
}

/// Those of a layer.
pub struct LayerWeights<M, V> {
    /// Before attention, `[hidden]`.
    pub attention_norm: V,
    /// Queries, keys and values in one matrix.
    pub qkv: M,
    /// Of each head of queries and of keys, `[head_dim]`.
    pub query_key_norms: Option<(V, V)>,
    /// Of what heads attended to.
    pub output: M,
    /// Before the feed-forward part, `[hidden]`.
    pub mlp_norm: V,
    /// Gates and ups in one matrix.
    pub gate_up: M,
    /// Back into the residual stream.
    pub down: M,
}

/// Takes a decoder's parameters in.
pub trait Hold {
    /// How it holds a matrix with its bias.
    type Matrix;
    /// How it holds a vector.
    type Vector;
    /// Why it cannot.
    type Error: From<WeightsError>;

    /// Takes a matrix.
    ///
    /// # Errors
    /// If there is no room for it.
    fn matrix(&mut self, stack: &Stack<'_>) -> Result<Self::Matrix, Self::Error>;

    /// Takes gates on top of what they are for.
    ///
    /// # Errors
    /// As above.
    fn gated(&mut self, stack: &Stack<'_>) -> Result<Self::Matrix, Self::Error> {
        self.matrix(stack)
    }

    /// Takes the embedding, or the head where that is another one: `[vocab, hidden]`.
    ///
    /// # Errors
    /// As above.
    fn table(&mut self, stack: &Stack<'_>) -> Result<Self::Matrix, Self::Error> {
        self.matrix(stack)
    }

    /// Takes a vector.
    ///
    /// # Errors
    /// As above.
    fn vector(&mut self, values: View<'_>) -> Result<Self::Vector, Self::Error>;
}

/// One matrix `[outputs, inputs]`, of tensors on top of each other.
pub struct Stack<'a> {
    /// Rows of all.
    pub outputs: usize,
    /// Numbers of a row.
    pub inputs: usize,
    /// The tensors, each with the number of its first row.
    pub parts: Vec<(usize, View<'a>)>,
    /// Their biases, each with the number of its first value; none if there are none.
    pub bias: Vec<(usize, View<'a>)>,
}

impl Stack<'_> {
    /// Converts the values of a row from a column on to fill `into`.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn read<T: Element>(&self, row: usize, column: usize, into: &mut [T]) {
        let part = self.parts.partition_point(|(first, _)| *first <= row) - 1;
        let (first, view) = &self.parts[part];
        view.read((row - first) * self.inputs + column, into);
    }
}

impl<M, V> DecoderWeights<M, V> {
    /// Takes all weights out of a checkpoint, calling `progress` with the bytes read so far.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the config asks for, or would be ignored; or if it cannot be
    /// held.
    pub fn load<H: Hold<Matrix = M, Vector = V>>(
        config: &DecoderConfig,
        checkpoint: &Weights,
        hold: &mut H,
        progress: &mut dyn FnMut(u64),
    ) -> Result<DecoderWeights<M, V>, H::Error> {
        let mut loader = Loader {
            checkpoint,
            hold,
            progress,
            done: 0,
            used: Vec::new(),
        };
        let c = config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let embedding = loader.table("model.embed_tokens", c)?;
        let mut layers = Vec::new();
        for i in 0..c.layers() {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let [q, k, v, o] = ["q", "k", "v", "o"].map(|x| at(&format!("self_attn.{x}_proj")));
            let [gate, up, down] = ["gate", "up", "down"].map(|x| at(&format!("mlp.{x}_proj")));
            let query_key_norms = if c.qk_norm {
                let query = loader.vector(at("self_attn.q_norm.weight"), c.head_dim)?;
                let key = loader.vector(at("self_attn.k_norm.weight"), c.head_dim)?;
                Some((query, key))
            } else {
                None
            };
            layers.push(LayerWeights {
                attention_norm: loader.vector(at("input_layernorm.weight"), c.hidden)?,
                qkv: loader.matrix(&[&q, &k, &v], &[query, key, key], c.hidden, c.qkv_bias)?,
                query_key_norms,
                output: loader.matrix(&[&o], &[c.hidden], query, c.output_bias)?,
                mlp_norm: loader.vector(at("post_attention_layernorm.weight"), c.hidden)?,
                gate_up: loader.gated([&gate, &up], c.intermediate, c.hidden, c.mlp_bias)?,
                down: loader.matrix(&[&down], &[c.hidden], c.intermediate, c.mlp_bias)?,
            });
        }
        let norm = loader.vector("model.norm.weight".into(), c.hidden)?;
        let head = if c.tied {
            None
        } else {
            Some(loader.table("lm_head", c)?)
        };
        let used = loader.used;
        let ignorable = |name: &str| {
            // Old checkpoints hold the frequencies; tied ones may repeat the embedding.
            name.ends_with(".rotary_emb.inv_freq") || (c.tied && name == "lm_head.weight")
        };
        match checkpoint
            .names()
            .find(|name| !used.iter().any(|u| u == name) && !ignorable(name))
        {
            Some(name) => Err(WeightsError::Unused(name.into()).into()),
            None => Ok(DecoderWeights {
                embedding,
                head,
                layers,
                norm,
            }),
        }
    }

    /// Bytes held, where one says what a matrix and what a vector takes.
    pub fn bytes(&self, matrix: impl Fn(&M) -> usize, vector: impl Fn(&V) -> usize) -> usize {
        let of_layer = |layer: &LayerWeights<M, V>| {
            let matrices = [&layer.qkv, &layer.output, &layer.gate_up, &layer.down];
            let norms = layer.query_key_norms.iter();
            matrices.into_iter().map(&matrix).sum::<usize>()
                + vector(&layer.attention_norm)
                + vector(&layer.mlp_norm)
                + norms
                    .map(|(query, key)| vector(query) + vector(key))
                    .sum::<usize>()
        };
        let layers: usize = self.layers.iter().map(of_layer).sum();
        let head = self.head.as_ref().map_or(0, &matrix);
        matrix(&self.embedding) + head + layers + vector(&self.norm)
    }
}

/// Takes tensors out of a checkpoint by name.
struct Loader<'a, H> {
    checkpoint: &'a Weights,
    hold: &'a mut H,
    progress: &'a mut dyn FnMut(u64),
    done: u64,
    used: Vec<String>,
}

impl<'a, H: Hold> Loader<'a, H> {
    fn view(&mut self, name: String, shape: &[usize]) -> Result<View<'a>, WeightsError> {
        let view = self.checkpoint.tensor(&name, shape)?;
        self.done += view.bytes();
        self.used.push(name);
        Ok(view)
    }

    fn vector(&mut self, name: String, len: usize) -> Result<H::Vector, H::Error> {
        let view = self.view(name, &[len])?;
        let vector = self.hold.vector(view)?;
        (self.progress)(self.done);
        Ok(vector)
    }

    /// The embedding or the head.
    fn table(&mut self, name: &str, config: &DecoderConfig) -> Result<H::Matrix, H::Error> {
        let stack = self.stack(&[name], &[config.vocab], config.hidden, false)?;
        let table = self.hold.table(&stack)?;
        (self.progress)(self.done);
        Ok(table)
    }

    /// One matrix of the tensors `names` on top of each other, `outputs` rows each.
    fn matrix(
        &mut self,
        names: &[&str],
        outputs: &[usize],
        inputs: usize,
        with_bias: bool,
    ) -> Result<H::Matrix, H::Error> {
        let stack = self.stack(names, outputs, inputs, with_bias)?;
        let matrix = self.hold.matrix(&stack)?;
        (self.progress)(self.done);
        Ok(matrix)
    }

    /// One matrix of gates and of what they are for.
    fn gated(
        &mut self,
        names: [&str; 2],
        width: usize,
        inputs: usize,
        with_bias: bool,
    ) -> Result<H::Matrix, H::Error> {
        let stack = self.stack(&names, &[width; 2], inputs, with_bias)?;
        let matrix = self.hold.gated(&stack)?;
        (self.progress)(self.done);
        Ok(matrix)
    }

    fn stack(
        &mut self,
        names: &[&str],
        outputs: &[usize],
        inputs: usize,
        with_bias: bool,
    ) -> Result<Stack<'a>, WeightsError> {
        let mut stack = Stack {
            outputs: 0,
            inputs,
            parts: Vec::new(),
            bias: Vec::new(),
        };
        for (name, outputs) in names.iter().zip(outputs) {
            let weight = self.view(format!("{name}.weight"), &[*outputs, inputs])?;
            stack.parts.push((stack.outputs, weight));
            if with_bias {
                let bias = self.view(format!("{name}.bias"), &[*outputs])?;
                stack.bias.push((stack.outputs, bias));
            }
            stack.outputs += outputs;
        }
        Ok(stack)
    }
}
