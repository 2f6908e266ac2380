//! Pace: how much prefill a step bears that also decodes.

use std::time::Duration;

/// How much a new measurement counts in a mean: one in so many.
const MEMORY: f64 = 4.0;

/// A measurement counts as so many times the mean at most, so that one slow moment of the machine
/// does not spoil it.
const OUTLIER: f64 = 2.0;

/// Tokens of prefill that a step bears in any case: a prompt must be read some day, whatever it
/// costs.
pub(super) const LEAST: usize = 4;

/// A row is worth so many tokens of prefill before it is known, and never more than so many.
const ROW_COST: f64 = 2.0;
const MOST_ROW_COST: f64 = 64.0;

/// How many times more than ever before may be tried.
const GROWTH: usize = 4;

/// Of so many steps that decode, one does nothing else, to see how long that takes by now.
const REFRESH: u32 = 64;

/// Steps that only decode: means of their rows and seconds.
#[derive(Debug, Clone, Copy)]
struct Decodes {
    rows: f64,
    seconds: f64,
}

/// What steps take on this worker, as far as it must be known to keep those short that decode.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Steps that only decode, by the binary logarithm of their rows.
    decodes: [Option<Decodes>; 32],
    /// Seconds that a token of prefill adds to such a step.
    prefill: Option<f64>,
    /// Most tokens of prefill of such a step so far.
    tried: usize,
    /// Steps with both since the last one that was to decode only.
    mixed: u32,
}

impl Pace {
    /// A step of so many decodes and tokens of prefill took this long.
    pub(super) fn learn(&mut self, decodes: usize, prefill: usize, busy: Duration) {
        let (Some(class), false) = (decodes.checked_ilog2(), busy.is_zero()) else {
            return;
        };
        let seconds = busy.as_secs_f64();
        if prefill == 0 {
            if let Some(mean) = self.decodes.get_mut(class as usize) {
                *mean = Some(Decodes {
                    rows: averaged(mean.map(|mean| mean.rows), decodes as f64),
                    seconds: averaged(mean.map(|mean| mean.seconds), seconds),
                });
            }
        } else if let Some(alone) = self.alone(decodes) {
            let tokens = prefill as f64;
            // Noise may make it come out as nothing, which it never is.
            let least = self
                .prefill
                .map_or(seconds / tokens / 100.0, |each| each / 4.0);
            let each = ((seconds - alone) / tokens).max(least);
            self.prefill = Some(averaged(self.prefill, each));
            self.tried = self.tried.max(prefill);
        } else {
            // Nothing to measure it by: the next step is to tell.
            self.mixed = REFRESH;
        }
    }

    /// Seconds of a step that only decodes so many sequences, by the steps most like it.
    fn alone(&self, decodes: usize) -> Option<f64> {
        let class = decodes.checked_ilog2()? as usize;
        let (fewer, more) = self.decodes.split_at_checked(class + 1)?;
        let known = fewer.iter().rev().chain(more);
        known.flatten().next().map(|mean| mean.seconds)
    }

    /// Seconds of a step without rows, and of each row, by the straight line that is nearest to
    /// what is known. None if that is of steps of one size only.
    fn line(&self) -> Option<(f64, f64)> {
        let known: Vec<_> = self.decodes.iter().flatten().collect();
        let count = known.len() as f64;
        let mean =
            |of: fn(&Decodes) -> f64| known.iter().map(|&mean| of(mean)).sum::<f64>() / count;
        let (rows, seconds) = (mean(|mean| mean.rows), mean(|mean| mean.seconds));
        let (mut variance, mut covariance) = (0.0, 0.0);
        for mean in &known {
            variance += (mean.rows - rows).powi(2);
            covariance += (mean.rows - rows) * (mean.seconds - seconds);
        }
        let each = (covariance / variance).max(0.0);
        (known.len() > 1).then_some((seconds - each * rows, each))
    }

    /// Most rows of a step that takes no more than `stretch` times as long as one that decodes one
    /// sequence.
    pub(super) fn rows_within(&self, stretch: f64) -> usize {
        let largest = self.decodes.iter().flatten().last();
        let tried = largest.map_or(1, |mean| mean.rows.ceil() as usize);
        let rows = self.line().map(|(none, each)| {
            let one = none + each;
            // Infinite, and so all that may be tried, where rows cost nothing.
            1.0 + (one * (stretch - 1.0) / each).max(0.0)
        });
        // Saturates.
        rows.map_or(usize::MAX, |rows| rows as usize)
            .min(tried * GROWTH)
    }

    /// How many tokens of prefill a row costs as much as, in a step that decodes so many.
    pub(super) fn row_cost(&self, decodes: usize) -> f64 {
        let (Some(alone), Some(each)) = (self.alone(decodes), self.prefill) else {
            return ROW_COST;
        };
        (alone / decodes as f64 / each).clamp(1.0, MOST_ROW_COST)
    }

    /// Tokens of prefill that leave a step with so many decodes within `stretch` times as long as
    /// one that decodes one sequence.
    pub(super) fn spare(&self, decodes: usize, stretch: f64) -> usize {
        let alone = self.alone(decodes);
        let one = self.line().map(|(none, each)| none + each);
        let one = one.or(alone.filter(|_| decodes == 1));
        match (one, alone) {
            (Some(one), Some(alone)) => self.bears(decodes, one * stretch / alone),
            _ => LEAST,
        }
    }

    /// Tokens of prefill that the next step bears beside so many decodes if it is to take
    /// `stretch` times as long as without. Now and then it is to have none.
    pub(super) fn prefill_beside(&mut self, decodes: usize, stretch: f64) -> usize {
        self.mixed += 1;
        if self.mixed > REFRESH {
            self.mixed = 0;
            return 0;
        }
        self.bears(decodes, stretch)
    }

    /// The same, without counting the step.
    pub(super) fn bears(&self, decodes: usize, stretch: f64) -> usize {
        let (Some(alone), Some(each)) = (self.alone(decodes), self.prefill) else {
            return LEAST;
        };
        // Nothing, if it is negative.
        let tokens = (alone * (stretch - 1.0) / each).round() as usize;
        tokens.min(self.tried * GROWTH).max(LEAST)
    }

    /// Tokens of prefill that a step without decodes takes `stretch` times as long for as one that decodes one
    /// sequence does; any number, if that is not known.
    pub(super) fn bears_alone(&self, stretch: f64) -> usize {
        match (self.alone(1), self.prefill) {
            (Some(alone), Some(each)) => ((alone * stretch / each) as usize).max(LEAST),
            _ => usize::MAX,
        }
    }
}

/// A mean with one more measurement in it.
fn averaged(mean: Option<f64>, measured: f64) -> f64 {
    match mean {
        None => measured,
        Some(mean) => mean + (measured.min(mean * OUTLIER) - mean) / MEMORY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: f64 = 2.2;

    /// A worker: milliseconds of each step, decode and token of prefill.
    struct Costs(f64, f64, f64);

    impl Costs {
        fn step(&self, decodes: usize, prefill: usize) -> Duration {
            let Self(step, decode, token) = self;
            Duration::from_secs_f64((step + decode * decodes as f64 + token * prefill as f64) / 1e3)
        }

        /// Plans and runs so many steps with prefill; how many tokens of it the last one had.
        fn run(&self, pace: &mut Pace, decodes: usize, steps: usize) -> usize {
            let mut last = 0;
            for _ in 0..steps {
                let prefill = pace.prefill_beside(decodes, STRETCH);
                pace.learn(decodes, prefill, self.step(decodes, prefill));
                last = if prefill > 0 { prefill } else { last };
            }
            last
        }

        fn right(&self, decodes: usize) -> f64 {
            self.step(decodes, 0).as_secs_f64() * 1e3 * (STRETCH - 1.0) / self.2
        }
    }

    fn near(found: usize, right: f64) -> bool {
        (0.75..1.25).contains(&(found as f64 / right))
    }

    #[test]
    fn it_finds_the_prefill_that_a_step_bears() {
        for costs in [
            Costs(10.0, 1.5, 1.0),
            Costs(10.0, 0.1, 0.1),
            Costs(8.0, 0.0, 0.01),
        ] {
            for decodes in [7, 40] {
                let found = costs.run(&mut Pace::default(), decodes, 40);
                let right = costs.right(decodes);
                assert!(near(found, right), "{found}, not {right}");
            }
        }
    }

    #[test]
    fn a_slow_moment_passes() {
        let (costs, mut pace) = (Costs(10.0, 1.0, 0.1), Pace::default());
        let before = costs.run(&mut pace, 7, 40);
        pace.learn(7, before, Duration::from_secs(20));
        pace.learn(7, 0, Duration::from_secs(20));
        assert!(
            pace.prefill_beside(7, STRETCH) >= before / 2,
            "not much of it"
        );
        let after = costs.run(&mut pace, 7, 4 * REFRESH as usize);
        assert!(near(after, before as f64), "{after}, not {before}");
    }

    #[test]
    fn dear_prefill_is_not_dear_for_ever() {
        let (costs, mut pace) = (Costs(10.0, 1.0, 0.1), Pace::default());
        let before = costs.run(&mut pace, 7, 40);
        let dear = Costs(10.0, 1.0, 5.0).run(&mut pace, 7, 1000);
        assert_eq!(dear, LEAST);
        let after = costs.run(&mut pace, 7, 40);
        assert!(near(after, before as f64), "{after}, not {before}");
    }

    #[test]
    fn decodes_alone_are_measured_now_and_then() {
        let mut pace = Pace::default();
        let costs = Costs(10.0, 1.0, 0.1);
        let without = (0..10 * (REFRESH + 1)).filter(|_| {
            let prefill = pace.prefill_beside(7, STRETCH);
            pace.learn(7, prefill, costs.step(7, prefill));
            prefill == 0
        });
        assert_eq!(without.count(), 10, "at once, and after every {REFRESH}");
        // They became ten times as slow while there was always something to read.
        let slower = Costs(100.0, 10.0, 0.1);
        let found = slower.run(&mut pace, 7, 30 * REFRESH as usize);
        assert!(near(found, slower.right(7)), "{found}");
    }

    #[test]
    fn without_times_there_is_prefill_all_the_same() {
        let mut pace = Pace::default();
        for _ in 0..REFRESH {
            assert_eq!(pace.prefill_beside(7, STRETCH), LEAST);
            pace.learn(7, LEAST, Duration::ZERO);
        }
        for (decodes, prefill) in [(0, 5), (usize::MAX, 5), (7, usize::MAX), (7, 0)] {
            pace.learn(decodes, prefill, Duration::MAX);
            let prefill = pace.prefill_beside(7, STRETCH);
            assert!(prefill == 0 || prefill >= LEAST);
        }
    }
}
