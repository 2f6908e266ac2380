//! Memory that cases work in.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use bytemuck::Pod;

use super::Fault;
use crate::{Device, DeviceError, Memory};

/// Bytes that lie behind each array of an area, and that nothing may write.
const MARGIN: usize = 256;
/// What memory holds that nobody has written: as a number of any type it is NaN.
const UNWRITTEN: u8 = 0xff;

/// A device, and the memory on it that a case may use.
#[derive(Debug)]
pub struct Scratch<'a, D> {
    /// The device.
    pub device: &'a D,
    area: Option<Area>,
}

#[derive(Debug)]
struct Area {
    memory: Memory,
    used: Cell<usize>,
    /// What lies behind each array.
    margins: RefCell<Vec<Memory>>,
}

/// An array in the memory of the device.
#[derive(Debug)]
pub(super) struct Array<T> {
    memory: Memory,
    len: usize,
    holds: PhantomData<T>,
}

impl<T> Array<T> {
    pub(super) fn memory(&self) -> Memory {
        self.memory
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

impl<'a, D: Device> Scratch<'a, D> {
    /// Arrays are memory of their own, that lasts as long as the device: on the emulator what is behind them cannot
    /// be touched.
    pub fn separate(device: &'a D) -> Scratch<'a, D> {
        Scratch { device, area: None }
    }

    /// All cases take their arrays from the same `bytes`. What lies between arrays must stay as it is.
    ///
    /// # Errors
    /// If the device has not as much left.
    pub fn within(device: &'a D, bytes: usize) -> Result<Scratch<'a, D>, DeviceError> {
        let area = Area {
            memory: device.allocate(bytes)?,
            used: Cell::new(0),
            margins: RefCell::default(),
        };
        Ok(Scratch {
            device,
            area: Some(area),
        })
    }

    /// A copy of `values`.
    pub(super) fn array<T: Pod>(&self, values: &[T]) -> Result<Array<T>, Fault> {
        let array = self.place(values.len())?;
        self.set(&array, values)?;
        Ok(array)
    }

    /// An array of NaN.
    pub(super) fn unwritten<T: Pod>(&self, len: usize) -> Result<Array<T>, Fault> {
        let array = self.place(len)?;
        self.device
            .write(array.memory, &vec![UNWRITTEN; array.memory.bytes()])?;
        Ok(array)
    }

    /// Copies `values` to the beginning of an array.
    pub(super) fn set<T: Pod>(&self, array: &Array<T>, values: &[T]) -> Result<(), Fault> {
        Ok(self
            .device
            .write(array.memory, bytemuck::cast_slice(values))?)
    }

    /// What an array holds.
    pub(super) fn values<T: Pod>(&self, array: &Array<T>) -> Result<Vec<T>, Fault> {
        let mut values = vec![T::zeroed(); array.len];
        self.device
            .read(array.memory, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn place<T>(&self, len: usize) -> Result<Array<T>, Fault> {
        let bytes = len * size_of::<T>();
        let memory = match &self.area {
            None => self.device.allocate(bytes)?,
            Some(area) => {
                let (memory, margin) = area.take(bytes)?;
                self.device.write(margin, &[UNWRITTEN; MARGIN])?;
                memory
            }
        };
        Ok(Array {
            memory,
            len,
            holds: PhantomData,
        })
    }

    /// Gives up all arrays, so that others can take their place.
    pub(super) fn clear(&self) {
        if let Some(area) = &self.area {
            area.used.set(0);
            area.margins.borrow_mut().clear();
        }
    }

    /// Checks what lies behind arrays, and gives them up.
    pub(super) fn check_margins(&self) -> Result<(), Fault> {
        let Some(area) = &self.area else {
            return Ok(());
        };
        let mut bytes = [0; MARGIN];
        for margin in area.margins.borrow().iter() {
            self.device.read(*margin, &mut bytes)?;
            if let Some(at) = bytes.iter().position(|byte| *byte != UNWRITTEN) {
                let end = margin.address() - area.memory.address();
                return Err(Fault::Differs(format!(
                    "a kernel writes beyond the array that ends at byte {end} of the scratch: {:#04x} lies {at} \
                     bytes behind its end",
                    bytes[at]
                )));
            }
        }
        self.clear();
        Ok(())
    }
}

impl Area {
    /// `bytes` of it that nobody else has, and what is behind them.
    fn take(&self, bytes: usize) -> Result<(Memory, Memory), DeviceError> {
        let at = self.used.get();
        let end = at.saturating_add(bytes);
        let parts = self
            .memory
            .part(at, bytes)
            .zip(self.memory.part(end, MARGIN));
        let Some(parts) = parts else {
            let total = self.memory.bytes();
            return Err(DeviceError::Full {
                wanted: bytes,
                free: total - at.min(total),
                total,
            });
        };
        self.used.set((end + MARGIN).next_multiple_of(MARGIN));
        self.margins.borrow_mut().push(parts.1);
        Ok(parts)
    }
}
