//! What a program was heard to say, and what of that counts: what follows from nothing but its journal.

use std::collections::{HashMap, VecDeque};

use realm_shared::run::{Drawn, Journal, MOST_SEEN, Said, What};

/// Of one program.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    journal: Journal,
    /// Tokens that the program has taken in its present life, by sequence, as far as that counts.
    taken: HashMap<u32, usize>,
    /// What was said, the oldest first, that does not count yet.
    said: VecDeque<Said>,
    /// Words and bytes in it, and one for each thing said.
    unheard: usize,
    /// Words of what comes next.
    words: Vec<u32>,
}

impl Hearing {
    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Tokens that the program has taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.values().sum()
    }

    pub(super) fn hear(&mut self, said: Said) {
        self.unheard += said.what.size();
        self.said.push_back(said);
    }

    /// How much was said that does not count yet: words, bytes of text, and one for each thing.
    pub(super) fn unheard(&self) -> usize {
        self.unheard
    }

    /// Another worker begins anew.
    pub(super) fn restart(&mut self) {
        self.taken.clear();
        self.said.clear();
        self.unheard = 0;
        self.words.clear();
    }

    /// Writes down what was drawn for a sequence.
    pub(super) fn write(&mut self, ordinal: u32, token: Drawn) {
        let (at, drawn) = (ordinal as usize, &mut self.journal.drawn);
        if drawn.len() <= at {
            drawn.resize_with(at + 1, Vec::new);
        }
        drawn[at].push(token);
    }

    /// Writes down what the program is to see. False if it may see no more.
    pub(super) fn see(&mut self, words: &[u32]) -> bool {
        let seen = &mut self.journal.seen;
        let fits = seen.len() + 1 + words.len() <= MOST_SEEN;
        if fits {
            seen.extend(u32::try_from(words.len()));
            seen.extend(words);
        }
        fits
    }

    /// What was said next and counts, all of it. `may_open` tells whether a sequence can be opened now;
    /// nothing has more words than `most`.
    ///
    /// # Errors
    /// If no program can have said that.
    pub(super) fn next(&mut self, may_open: bool, most: usize) -> Result<Option<What>, String> {
        while let Some(said) = self.said.front() {
            let waits = matches!(said.what, What::Open(_)) && !may_open;
            if waits || !said.took.iter().all(|took| self.is_written(took)) {
                break;
            }
            let Some(Said { took, mut what, .. }) = self.said.pop_front() else {
                break;
            };
            self.unheard = self.unheard.saturating_sub(what.size());
            for (ordinal, count) in took {
                *self.taken.entry(ordinal).or_default() += count as usize;
            }
            if let What::More(words) = what {
                self.words.extend(words);
                if self.words.len() > most.max(MOST_SEEN) {
                    return Err("says what is too long".into());
                }
                continue;
            }
            what.prepend(std::mem::take(&mut self.words));
            match what {
                What::Saw(words) => {
                    if !self.see(&words) {
                        return Err(format!("sees more than {MOST_SEEN} words"));
                    }
                }
                What::Redraw(kept) => self.redraw(&kept)?,
                what => return Ok(Some(what)),
            }
        }
        Ok(None)
    }

    fn is_written(&self, &(ordinal, count): &(u32, u32)) -> bool {
        let written = self.journal.drawn.get(ordinal as usize);
        let before = self.taken.get(&ordinal).copied().unwrap_or(0);
        before + count as usize <= written.map_or(0, Vec::len)
    }

    /// Forgets what was drawn for something that the program does not do this time.
    fn redraw(&mut self, kept: &[(u32, u32)]) -> Result<(), String> {
        for &(ordinal, count) in kept {
            let taken = self.taken.get(&ordinal).copied().unwrap_or(0);
            let drawn = self.journal.drawn.get_mut(ordinal as usize);
            // What it has taken is what it goes on from.
            let drawn = drawn.filter(|_| taken <= count as usize);
            let drawn = drawn.ok_or("forgets what was not drawn")?;
            drawn.truncate(count as usize);
        }
        Ok(())
    }
}
