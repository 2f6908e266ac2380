//! What a program sees of the model: the logits of a sequence's next token, and the hidden state that they
//! follow from.

use wasmtime::component::Resource;

use super::answering::Run;
use super::contract::program::realm::program::sequences::Exhausted;
use super::lanes::take_turns;
use super::lease::{Answer, Question, Sight};
use super::sequences::{Asked, Sequence, Wanted, over, plan};
use super::tensors::{Tensor, Value};

impl Sight {
    /// Functions of the contract that are about it.
    fn asked_by(self) -> &'static str {
        match self {
            Sight::Logits => "ask-logits",
            Sight::Hidden => "ask-hidden",
        }
    }

    fn taken_by(self) -> &'static str {
        match self {
            Sight::Logits => "take-logits",
            Sight::Hidden => "take-hidden",
        }
    }
}

impl Run {
    /// What the model computes for a sequence as it was.
    pub(super) async fn sight_of(
        &mut self,
        wanted: Wanted,
        sight: Sight,
    ) -> wasmtime::Result<Vec<f32>> {
        let lease = self.open(wanted, Question::Show(sight));
        match lease.answered().await {
            Some(Ok(Answer::Shown(numbers))) => Ok(numbers),
            Some(Err(failure)) => Err(failure.into()),
            Some(Ok(Answer::Drawn(_))) | None => Err(over()),
        }
    }

    /// Asks for what the model computes for the next token.
    pub(super) fn ask_sight(
        &mut self,
        this: &Resource<Sequence>,
        sight: Sight,
    ) -> wasmtime::Result<Result<(), Exhausted>> {
        if let Err(exhausted) = self.may_draw(this, sight.asked_by())? {
            return Ok(Err(exhausted));
        }
        if self.replay.is_over() {
            self.ask_lease(this, Question::Show(sight))?;
        } else {
            self.sequence(this)?.asked = Asked::SightBefore(sight);
            self.asked += 1;
        }
        Ok(Ok(()))
    }

    /// Waits for what was asked for, which must be this.
    pub(super) async fn take_sight(
        &mut self,
        this: &Resource<Sequence>,
        wanted: Sight,
    ) -> wasmtime::Result<Resource<Tensor>> {
        self.say_given();
        let shape = vec![match wanted {
            Sight::Logits => self.limits.vocabulary.into(),
            Sight::Hidden => self.limits.hidden_size.into(),
        }];
        let sequence = self.sequence(this)?;
        let asked = std::mem::replace(&mut sequence.asked, Asked::Nothing);
        match (asked, &sequence.lease) {
            (Asked::SightBefore(sight), _) if sight == wanted => {
                take_turns().await;
                let sequence = self.sequence(this)?.wanted();
                self.add_tensor(Value::sight_of(sequence, sight, shape))
                    .await
            }
            (Asked::Sight(sight), Some(lease)) if sight == wanted => {
                let numbers = match lease.answered().await {
                    Some(Ok(Answer::Shown(numbers))) => numbers,
                    Some(Err(failure)) => return Err(failure.into()),
                    Some(Ok(Answer::Drawn(_))) | None => return Err(over()),
                };
                self.guest.meter.begin_stretch();
                self.add_tensor(Value::of(&numbers, &shape)?).await
            }
            (_, _) => {
                let take = wanted.taken_by();
                Err(plan(format!("`{take}` of what was not asked for")).into())
            }
        }
    }
}
