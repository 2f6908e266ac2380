//! Activations: memory that steps compute in.

use std::io;

use super::mapping::Zeroed;

/// Room for `[rows, width]` values, reserved once and used from the front by every step.
pub struct Buffer {
    values: Zeroed<f32>,
    width: usize,
}

impl Buffer {
    /// Zeros.
    ///
    /// # Errors
    /// If the system has no address space for them.
    pub fn new(rows: usize, width: usize) -> io::Result<Buffer> {
        let values = Zeroed::new(rows * width)?;
        Ok(Buffer { values, width })
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn rows(&self, rows: usize) -> &[f32] {
        &self.values.as_slice()[..rows * self.width]
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.values.as_mut_slice()[..rows * self.width]
    }
}
