//! A sequence slot: how its tokens are drawn, and what steers that.

use std::time::{Duration, Instant};

use realm_shared::wire::Fault;
use realm_shared::wire::result::{FAULT, LATE, NO_NUMBER, STOPPED};

use crate::sampler::{Sampler, Scored};
use crate::tenant::{Failure, Steering, Verdict};

/// How long a step waits for plans that are late for the first time. An instance that needs
/// microseconds, and had the whole forward pass for them, is on its way; others are not worth waiting
/// for.
const GRACE: Duration = Duration::from_micros(200);
/// The same where nothing else is to be drawn: so that the gateway does not ask in vain all the time.
const IDLE_GRACE: Duration = Duration::from_millis(5);

/// The state of an open sequence.
pub(crate) struct Slot {
    sampler: Sampler,
    steering: Option<Steering>,
    /// What the last plan said that came in.
    verdict: Option<Verdict>,
    parked: Option<Parked>,
    /// The hidden state that the logits to draw from follow from, if its code may ask for that yet.
    hidden: Vec<f32>,
    /// Where its tokens are drawn.
    place: Place,
}

/// Where the tokens of a slot are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    /// On the model's device, which has the last one, if it `has_drawn` one.
    Device {
        has_drawn: bool,
    },
}

/// Logits from which a token could not be drawn yet.
pub(crate) struct Parked {
    pub(crate) logits: Vec<f32>,
    /// Number of the token.
    pub(crate) index: u32,
}

/// What came of a draw.
#[derive(Default)]
pub(crate) struct Drawn {
    /// What stands for it in `result::TOKENS`.
    pub(crate) code: i32,
    /// The token, if there is one.
    pub(crate) token: Option<u32>,
    /// Why there is none, if a tenant's code failed.
    pub(crate) failure: Option<Failure>,
}

impl Slot {
    pub(crate) fn new(sampler: Sampler, steering: Option<Steering>) -> Slot {
        Slot {
            sampler,
            steering,
            verdict: None,
            parked: None,
            hidden: Vec::new(),
            place: Place::Here,
        }
    }

    /// Its tokens are drawn on the model's device.
    pub(crate) fn move_to_device(&mut self) {
        self.place = Place::Device { has_drawn: false };
    }

    pub(crate) fn is_on_device(&self) -> bool {
        self.place != Place::Here
    }

    /// Its device is told to draw a token.
    pub(crate) fn draw_on_device(&mut self) {
        self.place = Place::Device { has_drawn: true };
    }

    pub(crate) fn is_steered(&self) -> bool {
        self.steering.is_some()
    }

    /// The token drawn last, see [`Sampler::last`], as [`Forward::forward`](crate::decoder::Forward::forward) takes
    /// that of slot `number`.
    pub(crate) fn last(&self, number: usize) -> Option<i32> {
        match self.place {
            Place::Here => self.sampler.last().map(|token| token as i32),
            Place::Device { has_drawn } => has_drawn.then_some(-1 - number as i32),
        }
    }

    /// Alternatives to report, see [`Sampler::top_logprobs`].
    pub(crate) fn top_logprobs(&self) -> Option<usize> {
        self.sampler.top_logprobs()
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Whether its code has not said yet how to draw, when it was considered last.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Late))
    }

    /// Number of the token that is to be drawn from the logits that were kept, if some were.
    pub(crate) fn parked_index(&self) -> Option<u32> {
        self.parked.as_ref().map(|parked| parked.index)
    }

    /// Takes the logits that were kept.
    pub(crate) fn unpark(&mut self) -> Option<Parked> {
        self.parked.take()
    }

    /// Whether its code may ask for the hidden state behind the logits that are drawn from next, or kept.
    pub(crate) fn wants_hidden(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Show | Verdict::Late))
    }

    /// Takes that hidden state.
    pub(crate) fn keep_hidden(&mut self, hidden: &[f32]) {
        self.hidden.clear();
        self.hidden.extend(hidden);
    }

    /// Asks its code how to draw. Whether that is known.
    fn consider(&mut self) -> bool {
        let verdict = self.steering.as_mut().map(Steering::verdict);
        let known = !matches!(verdict, Some(Verdict::Late));
        self.verdict = verdict;
        known
    }

    /// Draws the token with number `index` from logits that are clean, by the verdict of
    /// [`consider_all`]. `numbers` tells whether there are any among them.
    pub(crate) fn draw(&mut self, logits: &mut [f32], numbers: bool, index: u32) -> Drawn {
        let before = self.steering.as_ref().map_or(0, Steering::drawn_before);
        let number = index.saturating_add(before);
        let drawn = match self.verdict.take() {
            _ if !numbers => Err(NO_NUMBER),
            None => self.sampler.draw(logits, index).ok_or(NO_NUMBER),
            Some(Verdict::Draw(draw)) => match self.sampler.draw_steered(logits, number, &draw) {
                Some(token) => Ok(token),
                None => return self.fail(nothing_to_draw()),
            },
            Some(Verdict::DrawFrom(draw, own)) => {
                let mut own = own.to_vec();
                match self.sampler.draw_steered(&mut own, number, &draw) {
                    Some(token) => Ok(token),
                    None => return self.fail(nothing_to_draw()),
                }
            }
            Some(Verdict::Force(token)) => {
                self.sampler.take(token);
                Ok(token)
            }
            Some(verdict @ (Verdict::Show | Verdict::Late)) => {
                if let (Verdict::Show, Some(steering)) = (verdict, &self.steering) {
                    steering.show(logits, &self.hidden);
                }
                let logits = logits.to_vec();
                self.parked = Some(Parked { logits, index });
                Err(LATE)
            }
            Some(Verdict::Stop) => Err(STOPPED),
            Some(Verdict::Failed(failure)) => return self.fail(failure),
        };
        match drawn {
            Ok(token) => Drawn {
                code: token as i32,
                token: Some(token),
                failure: None,
            },
            Err(code) => {
                self.sampler.skip();
                Drawn {
                    code,
                    ..Drawn::default()
                }
            }
        }
    }

    /// Tells its code of a token that was drawn.
    pub(crate) fn accept(&mut self, token: u32, logprob: f32, alternatives: &[Scored]) {
        if let Some(steering) = &mut self.steering {
            steering.accept_scored(token, logprob, alternatives);
        }
    }

    fn fail(&mut self, failure: Failure) -> Drawn {
        self.sampler.skip();
        if let Some(steering) = &mut self.steering {
            steering.refuse(&failure);
        }
        Drawn {
            code: FAULT,
            token: None,
            failure: Some(failure),
        }
    }
}

fn nothing_to_draw() -> Failure {
    let message = "the model can draw none of the tokens that it allows";
    Failure::new(Fault::Plan, message)
}

/// Asks the code of all steered sequences that are to draw, and waits a little for those that are
/// late: `alone` says that nothing else is drawn in this step.
pub(crate) fn consider_all<'a>(slots: impl Iterator<Item = &'a mut Slot>, alone: bool) {
    let mut late: Vec<&mut Slot> = slots.collect();
    let Some(bell) = late.iter().find_map(|slot| slot.steering.as_ref()) else {
        return;
    };
    let bell = bell.bell();
    let count = late.len();
    let end = Instant::now() + if alone { IDLE_GRACE } else { GRACE };
    loop {
        // Read first: an answer that comes in while they are asked is then not waited for.
        let rings = bell.rings();
        late.retain_mut(|slot| !slot.consider());
        let left = end.saturating_duration_since(Instant::now());
        let enough = match alone {
            // Whoever is the first to answer goes on.
            true => late.len() < count,
            false => late.iter().all(|slot| slot.is_parked()),
        };
        if enough || left.is_zero() {
            return;
        }
        bell.wait(rings, left);
    }
}

/// Writes why a row's code failed, as [`realm_shared::wire::result::NOTES`] has it.
pub(crate) fn note(failure: &Failure, into: &mut [u8]) {
    let Some((kind, text)) = into.split_first_mut() else {
        return;
    };
    *kind = failure.fault as u8;
    let message = failure.message.replace('\0', " ");
    let fitting = &message.as_bytes()[..message.floor_char_boundary(text.len())];
    text[..fitting.len()].copy_from_slice(fitting);
}
