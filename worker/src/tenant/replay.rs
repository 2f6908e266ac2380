//! What happened to a program in an earlier life, on a worker that died: here it happens again.

use std::collections::VecDeque;

use realm_shared::run::{Drawn, Journal};

/// What is left of an earlier life.
pub(super) struct Replay {
    /// Tokens, for each sequence that the program makes.
    drawn: Vec<Drawns>,
    /// How many of those it has not asked for again.
    undrawn: usize,
    /// What it saw otherwise, as in [`Journal::seen`].
    seen: std::vec::IntoIter<u32>,
}

/// Tokens of a sequence.
struct Drawns {
    /// Those that were asked for again.
    asked: u32,
    left: VecDeque<Drawn>,
}

impl Replay {
    pub(super) fn new(Journal { drawn, seen }: Journal) -> Replay {
        let undrawn = drawn.iter().map(Vec::len).sum();
        let drawn = drawn.into_iter().map(|left| Drawns {
            asked: 0,
            left: left.into(),
        });
        Replay {
            drawn: drawn.collect(),
            undrawn,
            seen: seen.into_iter(),
        }
    }

    /// Whether the program does nothing again that it did before.
    pub(super) fn is_over(&self) -> bool {
        self.undrawn == 0 && self.seen.len() == 0
    }

    /// The next token of the sequence with this number.
    pub(super) fn draw(&mut self, sequence: u32) -> Option<Drawn> {
        let drawns = self.drawns(sequence)?;
        let drawn = drawns.left.pop_front()?;
        drawns.asked += 1;
        self.undrawn -= 1;
        Some(drawn)
    }

    /// What it saw next.
    pub(super) fn see(&mut self) -> Option<Vec<u32>> {
        let words = self.seen.next()?;
        let words = usize::try_from(words).unwrap_or(usize::MAX);
        Some(self.seen.by_ref().take(words).collect())
    }

    /// The program is done with a sequence.
    pub(super) fn close(&mut self, sequence: u32) {
        if let Some(drawns) = self.drawns(sequence) {
            let left = std::mem::take(&mut drawns.left).len();
            self.undrawn -= left;
        }
    }

    /// The program goes another way: no token follows that it has not asked for yet. Tells of the
    /// sequences that had such tokens how many others they have.
    pub(super) fn part(&mut self) -> Vec<(u32, u32)> {
        if std::mem::take(&mut self.undrawn) == 0 {
            return Vec::new();
        }
        let drawns = (0..).zip(&mut self.drawn);
        let drawns = drawns.filter(|(_, drawns)| !drawns.left.is_empty());
        let parted = drawns.map(|(sequence, drawns)| {
            drawns.left.clear();
            (sequence, drawns.asked)
        });
        parted.collect()
    }

    fn drawns(&mut self, sequence: u32) -> Option<&mut Drawns> {
        self.drawn.get_mut(usize::try_from(sequence).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(token: u32) -> Drawn {
        Drawn {
            token,
            logprob: 0.0,
            alternatives: Vec::new(),
        }
    }

    #[test]
    fn each_sequence_and_each_look_has_its_own() {
        let mut replay = Replay::new(Journal {
            drawn: vec![vec![drawn(1), drawn(2)], Vec::new(), vec![drawn(3)]],
            seen: vec![2, 8, 9, 0, 1, 7],
        });
        assert_eq!(replay.draw(2), Some(drawn(3)));
        assert_eq!(replay.see(), Some(vec![8, 9]));
        assert_eq!(replay.draw(0), Some(drawn(1)));
        for none in [1, 2, 3, u32::MAX] {
            assert_eq!(replay.draw(none), None);
        }
        replay.close(0);
        assert!(!replay.is_over());
        assert_eq!(replay.see(), Some(Vec::new()));
        assert_eq!(replay.see(), Some(vec![7]));
        assert!(replay.is_over());
        assert_eq!((replay.see(), replay.draw(0)), (None, None));
    }

    #[test]
    fn whoever_goes_another_way_has_what_was_asked_for() {
        let mut replay = Replay::new(Journal {
            drawn: vec![
                vec![drawn(1), drawn(2)],
                vec![drawn(3)],
                vec![drawn(4)],
                vec![drawn(5)],
            ],
            seen: Vec::new(),
        });
        replay.draw(0);
        replay.draw(1);
        replay.close(2);
        assert_eq!(replay.part(), [(0, 1), (3, 0)]);
        assert!(replay.is_over());
        assert_eq!(replay.part(), []);
    }

    #[test]
    fn what_ends_too_early_is_shorter() {
        let mut replay = Replay::new(Journal {
            drawn: Vec::new(),
            seen: vec![u32::MAX, 1],
        });
        assert_eq!(replay.see(), Some(vec![1]));
        assert!(replay.is_over());
    }
}
