//! Whether a device does what it should: each kernel, and what else is asked of a [`Device`], beside references
//! on the host.
//!
//! A case never panics: it reports. Tests run the cases on the emulator, `realm-worker selfcheck` on a GPU.

mod agreement;
mod attention;
mod attention_cases;
mod device;
mod elementwise;
mod number;
mod product;
mod quantize;
mod read;
mod rotary;
mod sample;
mod sampler;
mod scratch;
mod tensor_cores;

pub use agreement::{Agreement, Comparison, Fault, Outcome};
pub use read::ReadAll;
pub use scratch::Scratch;

use crate::{Device, Element, Unit};

/// How much a case computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// What an emulator can do: sizes that differ in kind.
    Small,
    /// That, and sizes of models: what only shows where many blocks run at once, and at long contexts.
    Full,
}

impl Scale {
    fn pick<T>(self, small: T, full: T) -> T {
        match self {
            Scale::Small => small,
            Scale::Full => full,
        }
    }

    /// Bytes that [`Scratch::within`] should have for any of the cases.
    pub fn scratch_bytes(self) -> usize {
        self.pick(192 << 20, 2 << 30)
    }
}

/// One thing that is compared.
#[derive(Debug)]
pub struct Case<D> {
    /// What it is called, in lower case with underscores.
    pub name: &'static str,
    /// What is held against what.
    pub compares: &'static str,
    run: fn(&Scratch<'_, D>, Scale) -> Outcome,
}

impl<D: Device> Case<D> {
    /// Runs it.
    ///
    /// # Errors
    /// Says where the device differs from the reference, or how it failed.
    pub fn run(&self, on: &Scratch<'_, D>, scale: Scale) -> Outcome {
        on.clear();
        let agreement = (self.run)(on, scale)?;
        on.check_margins()?;
        Ok(agreement)
    }
}

/// All cases.
pub fn cases<D: Device>() -> Vec<Case<D>> {
    let mut cases = Vec::new();
    let mut add = |name, compares, run| {
        cases.push(Case {
            name,
            compares,
            run,
        });
    };
    let exact = "what was written, to the bit";
    add("memory", exact, device::memory);
    add(
        "product",
        "products of matrices with sums in f64",
        product::product,
    );
    add(
        "tensor_cores",
        "fragments of mma with exact products",
        tensor_cores::products,
    );
    add("embed", "rows with the table's", elementwise::embed);
    add(
        "gather_rows",
        "rows with those wanted",
        elementwise::gather_rows,
    );
    add("add_rms_norm", "norms with f64", elementwise::add_rms_norm);
    add(
        "silu_multiply",
        "gated activations with f64",
        elementwise::silu_multiply,
    );
    add(
        "quantize_rows",
        "rows in fp8 with the definition of e4m3, to the bit",
        quantize::quantize_rows,
    );
    add(
        "scaled_product",
        "products of rows in fp8 with sums in f64",
        quantize::scaled_product,
    );
    add(
        "rotate_and_store",
        "rotated heads and the arena with f64",
        rotary::rotate_and_store,
    );
    add(
        "rotary_angles",
        "sines and cosines with those of f64, to the bit",
        rotary::angles,
    );
    let definition = "attention with its definition in f64";
    add("attention_variants", definition, attention_cases::variants);
    add("attention_groups", definition, attention_cases::groups);
    add("attention_windows", definition, attention_cases::windows);
    add(
        "attention_long_rows",
        definition,
        attention_cases::long_rows,
    );
    add(
        "attention_few_tokens",
        definition,
        attention_cases::few_tokens,
    );
    add("attention_batch", definition, attention_cases::batch);
    add(
        "attention_graph",
        "a step replayed for other rows, with the definition in f64",
        attention_cases::graph,
    );
    add(
        "attention_alone",
        "rows with themselves in other steps and grids, to the bit",
        attention_cases::alone,
    );
    add(
        "attention_plan",
        "rows that cannot be with those left out",
        attention_cases::plan,
    );
    let sampler = "tokens with a sampler that sorts, and log-probabilities with f64";
    add("draws", sampler, sample::draws);
    add("filters", sampler, sample::filters);
    add("ties", sampler, sample::ties);
    add("broken_numbers", sampler, sample::broken_numbers);
    add(
        "padding",
        "rows that fill up a batch with nothing",
        sample::padding,
    );
    add("token_counts", "counts with counting", sample::token_counts);
    add(
        "read_all",
        "memory that is read with what it holds",
        read::read_all,
    );
    // At the end: what fails there may leave a device that does nothing else any more.
    add("graph", "what is replayed with sums in f64", device::graph);
    cases
}

/// Units that cases compile besides those of the [`catalogue`](crate::catalogue).
pub fn units() -> Vec<Unit> {
    let mut units = tensor_cores::units();
    units.push(Unit::new(read::SOURCE, Element::F32));
    units
}
