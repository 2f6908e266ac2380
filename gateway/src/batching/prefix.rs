//! Prefixes: what tells that a block already holds what a sequence would compute.

use sha2::{Digest as _, Sha256};

use super::sequence::TenantId;

/// Names what a full block holds: its tokens, all tokens before them, and whose they are.
///
/// Keys and values of a position depend on the tokens up to it and on nothing else, so blocks of
/// one name hold the same. Whose they are is part of the name: no tenant can find out, by how
/// soon an answer comes, what another one has asked.
///
/// Each is the SHA-256 of the one before it and the tokens of the block. Two that are equal by
/// chance would show a tenant what another one wrote, so nothing shorter will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

/// The digests of the full blocks of a sequence.
#[derive(Debug, Default)]
pub(super) struct Prefix(Vec<Digest>);

impl Prefix {
    /// In the order of the blocks.
    pub(super) fn digests(&self) -> &[Digest] {
        &self.0
    }

    /// The same of no more than so many blocks.
    pub(super) fn first(&self, blocks: usize) -> Self {
        Self(self.0.iter().take(blocks).copied().collect())
    }

    /// Adds the next full block.
    pub(super) fn push(&mut self, tenant: TenantId, tokens: impl IntoIterator<Item = u32>) {
        let mut hasher = Sha256::new();
        match self.0.last() {
            Some(before) => hasher.update(before.0),
            None => hasher.update(tenant.0.get().to_le_bytes()),
        }
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        self.0.push(Digest(hasher.finalize().into()));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn digests(tenant: u32, blocks: &[[u32; 2]]) -> Vec<Digest> {
        let tenant = TenantId(NonZeroU32::new(tenant).expect("not 0"));
        let mut prefix = Prefix::default();
        for block in blocks {
            prefix.push(tenant, *block);
        }
        prefix.digests().to_vec()
    }

    #[test]
    fn a_block_is_named_by_its_tokens_those_before_it_and_whose_they_are() {
        let ours = digests(1, &[[1, 2], [3, 4]]);
        assert_eq!(digests(1, &[[1, 2], [3, 4], [5, 6]])[..2], ours);
        assert_ne!(digests(1, &[[1, 2], [3, 5]])[1], ours[1]);
        assert_ne!(digests(1, &[[0, 2], [3, 4]])[1], ours[1], "other context");
        assert_ne!(digests(2, &[[1, 2], [3, 4]])[0], ours[0], "other tenant");
        assert_ne!(digests(1, &[[3, 4]])[0], ours[1], "other position");
    }
}
