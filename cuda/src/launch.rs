//! What a launch is, whoever carries it out.

use std::fmt;

use bytemuck::{NoUninit, bytes_of};

use crate::catalogue::Source;

/// The type that weights, activations and cached keys and values are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// Brain floating point: the upper half of an `f32`.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl Element {
    /// All of them.
    pub const ALL: [Element; 3] = [Element::F32, Element::Bf16, Element::F16];

    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
        }
    }

    /// What kernels call it.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
        }
    }
}

/// Dimensions of a head that kernels are compiled for.
pub const HEAD_DIMS: [u32; 4] = [64, 96, 128, 256];

/// Tokens of a block of the arena.
pub const KV_BLOCK: usize = 16;

/// A kernel file and what it is compiled for: what becomes one cubin.
#[derive(Clone, Copy)]
pub struct Unit {
    /// The file.
    pub source: Source,
    /// `ELEMENT` in it.
    pub element: Element,
    /// `HEAD_DIM` in it, if it depends on that.
    pub head_dim: Option<u32>,
}

impl Unit {
    /// Of a file that does not depend on the size of heads.
    pub fn new(source: Source, element: Element) -> Unit {
        Unit {
            source,
            element,
            head_dim: None,
        }
    }

    /// The same for heads of a size.
    #[must_use]
    pub fn with_head_dim(self, head_dim: u32) -> Unit {
        Unit {
            head_dim: Some(head_dim),
            ..self
        }
    }

    /// What the file's text does not say of the variant, as options of a compiler.
    pub fn defines(&self) -> Vec<String> {
        let mut defines = vec![format!("-DELEMENT={}", self.element.name())];
        defines.extend(self.head_dim.map(|n| format!("-DHEAD_DIM={n}")));
        defines
    }

    fn key(&self) -> (&'static str, Element, Option<u32>) {
        (self.source.name, self.element, self.head_dim)
    }
}

impl PartialEq for Unit {
    fn eq(&self, other: &Unit) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Unit {}

impl std::hash::Hash for Unit {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.source.name.trim_end_matches(".cu");
        write!(f, "{file}/{}", self.element.name())?;
        self.head_dim.map_or(Ok(()), |n| write!(f, "/{n}"))
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One kernel of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Where it is.
    pub unit: Unit,
    /// Its name there.
    pub name: &'static str,
}

impl Kernel {
    /// The kernels of a file for every type.
    pub(crate) fn of_all(source: Source, names: &[&'static str]) -> Vec<Kernel> {
        let units = Element::ALL.map(|element| Unit::new(source, element));
        units
            .into_iter()
            .flat_map(|unit| names.iter().map(move |name| Kernel { unit, name }))
            .collect()
    }

    /// The kernels of a file for every type and every size of heads.
    pub(crate) fn of_all_heads(source: Source, names: &[&'static str]) -> Vec<Kernel> {
        let of = |n: u32| {
            let kernels = Kernel::of_all(source, names).into_iter();
            kernels.map(move |kernel| Kernel {
                unit: kernel.unit.with_head_dim(n),
                ..kernel
            })
        };
        HEAD_DIMS.into_iter().flat_map(of).collect()
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.unit, self.name)
    }
}

/// A kernel to launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Which.
    pub kernel: Kernel,
    /// Blocks, in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block: a multiple of 32, no more than the kernel is compiled for.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The kernel's parameter struct.
    pub params: &'a [u8],
}

/// Something that runs kernels, in the order of their launches.
pub trait Launcher {
    /// Launches a kernel; it may run after the return.
    ///
    /// # Errors
    /// If it cannot be compiled or launched. A kernel that fails while it runs may be reported by a later call.
    ///
    /// # Safety
    /// The parameters are those of the kernel, the memory that they name is valid on the device until the kernel
    /// has run, and what the kernel reads there keeps its accesses inside of that memory.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError>;
}

/// Why a kernel cannot be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What it is asked to work on does not fit together.
    #[error("{kernel}: {what}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What does not fit.
        what: String,
    },
    /// It does not compile, or the compiler is missing.
    #[error("cannot compile {unit}: {why}")]
    Compile {
        /// The unit.
        unit: Unit,
        /// Why.
        why: String,
    },
    /// The device, or what stands for it, refuses or fails.
    #[error("cannot run {kernel}: {why}")]
    Run {
        /// The kernel.
        kernel: Kernel,
        /// Why.
        why: String,
    },
}

/// A range of the memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    address: u64,
    bytes: usize,
}

impl Memory {
    /// The memory at a device address.
    ///
    /// # Safety
    /// The range is memory of the device that kernels given it run on. It stays so, and is not touched by others,
    /// until they have run.
    pub unsafe fn new(address: u64, bytes: usize) -> Memory {
        Memory { address, bytes }
    }

    /// Where it begins.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` of it from byte `at` on, unless it ends before.
    pub fn part(self, at: usize, bytes: usize) -> Option<Memory> {
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        fits.then(|| Memory {
            address: self.address + at as u64,
            bytes,
        })
    }
}

/// Checks the shapes of one kernel's launch.
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    /// That a condition holds; `what` says what does not otherwise.
    pub(crate) fn that(
        &self,
        holds: bool,
        what: impl FnOnce() -> String,
    ) -> Result<(), LaunchError> {
        if holds {
            return Ok(());
        }
        Err(LaunchError::Shape {
            kernel: self.0,
            what: what(),
        })
    }

    /// The address of memory that holds at least `counts` multiplied elements of `size` bytes, and is aligned to
    /// `align`.
    pub(crate) fn holds(
        &self,
        name: &str,
        memory: Memory,
        counts: &[usize],
        size: usize,
        align: usize,
    ) -> Result<u64, LaunchError> {
        let wanted = counts
            .iter()
            .try_fold(size, |product, n| product.checked_mul(*n));
        self.that(wanted.is_some_and(|n| n <= memory.bytes), || {
            format!(
                "`{name}` holds {} bytes, not {counts:?} elements of {size}",
                memory.bytes
            )
        })?;
        self.that(memory.address.is_multiple_of(align as u64), || {
            format!(
                "`{name}` lies at {:#x}, which is no multiple of {align}",
                memory.address
            )
        })?;
        Ok(memory.address)
    }

    /// That `n` is at least one and a multiple of `of`, as the kernel wants it.
    pub(crate) fn width(&self, name: &str, n: usize, of: usize) -> Result<i32, LaunchError> {
        self.that(n > 0 && n.is_multiple_of(of), || {
            format!("`{name}` is {n}, no multiple of {of}")
        })?;
        self.index(name, n)
    }

    /// `n` as the kernel wants it.
    pub(crate) fn index(&self, name: &str, n: usize) -> Result<i32, LaunchError> {
        i32::try_from(n).map_err(|_| LaunchError::Shape {
            kernel: self.0,
            what: format!("`{name}` is {n}"),
        })
    }

    /// `n` as a number of blocks, which must not be zero.
    pub(crate) fn count(&self, name: &str, n: usize) -> Result<u32, LaunchError> {
        self.width(name, n, 1).map(i32::cast_unsigned)
    }
}

/// What a kernel is given for memory that may be missing.
pub(crate) fn address(memory: Option<Result<u64, LaunchError>>) -> Result<u64, LaunchError> {
    memory.unwrap_or(Ok(0))
}

/// Launches a kernel with its parameter struct.
///
/// # Safety
/// As for [`Launcher::launch`].
pub(crate) unsafe fn run(
    on: &impl Launcher,
    unit: Unit,
    name: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared: usize,
    params: &impl NoUninit,
) -> Result<(), LaunchError> {
    let launch = Launch {
        kernel: Kernel { unit, name },
        grid,
        threads,
        shared: shared.try_into().unwrap_or(u32::MAX),
        params: bytes_of(params),
    };
    // SAFETY: the caller's word.
    unsafe { on.launch(&launch) }
}
