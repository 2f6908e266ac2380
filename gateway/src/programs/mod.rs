//! temporary
/// A program.
#[derive(Debug)]
pub struct Program {
    /// name
    pub name: String,
    /// digest
    pub digest: [u8; 32],
    /// code
    pub compiled: std::os::fd::OwnedFd,
}
