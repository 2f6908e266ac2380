//! A processor whose answer is one of the request's choices, and nothing else:
//! `{"name": "choice", "args": {"choices": ["yes", "no"]}}`.
//!
//! The model picks: at each step it may draw the tokens that continue one of the choices. An answer
//! of too few `max_tokens` ends inside its choice.

use realm_program::{Error, MOST_FORCED, Plan, Processor, Request, Token, processor, text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    choices: Vec<String>,
}

struct Choice {
    /// The choices, in tokens, that begin with what was accepted so far. Sorted, each once.
    open: Vec<Vec<Token>>,
    /// Tokens accepted so far.
    accepted: usize,
    /// What ends an answer.
    ends: Vec<Token>,
    /// The model drew one of `ends`.
    ended: bool,
}

impl Processor for Choice {
    fn start(request: Request) -> Result<Self, Error> {
        let args: Args = request.args()?;
        // A choice is encoded as it stands, not with a space before it: a chat's template ends
        // where an answer begins, after a line break or a special token, and there models were
        // taught answers without one. Tokenizers that mark the beginning of a word, like Llama 2's,
        // add their mark by themselves. Who completes a bare text such as `Answer:` may want the
        // space in the answer, and then writes it in the choices.
        let choices = args.choices.iter().map(|choice| text::encode(choice));
        Choice::new(choices.collect(), text::end_tokens())
    }

    fn advance(&mut self, accepted: &[Token]) -> Result<Plan, Error> {
        for token in accepted {
            self.accept(*token)?;
        }
        Ok(self.plan())
    }
}

impl Choice {
    fn new(mut choices: Vec<Vec<Token>>, ends: Vec<Token>) -> Result<Self, Error> {
        if choices.is_empty() {
            return Err("processor.args.choices: there must be at least one".into());
        }
        choices.sort();
        choices.dedup();
        if choices[0].is_empty() {
            return Err("processor.args.choices: a choice must not be empty".into());
        }
        // Sorted, what begins another is right before one that it begins.
        let longer = choices.windows(2).any(|pair| pair[1].starts_with(&pair[0]));
        if longer && ends.is_empty() {
            // To stop at the shorter would silently never answer the longer.
            return Err(
                "processor.args.choices: a choice begins another, and this model has no token to \
                 end an answer with; end the choices in a mark, such as a full stop"
                    .into(),
            );
        }
        Ok(Choice {
            open: choices,
            accepted: 0,
            ends,
            ended: false,
        })
    }

    fn accept(&mut self, token: Token) -> Result<(), Error> {
        let at = self.accepted;
        let goes_on = |choice: &Vec<Token>| choice.get(at) == Some(&token);
        if !self.open.iter().any(goes_on) {
            // Realm ends a sequence at an end token by itself, unless the request tells it not to.
            self.ended = self.ends.contains(&token) && self.complete();
            return match self.ended {
                true => Ok(()),
                false => Err(format!("token {token} continues none of the choices").into()),
            };
        }
        self.open.retain(goes_on);
        self.accepted += 1;
        Ok(())
    }

    /// Whether what was accepted is one of the choices. It is then the first of those open.
    fn complete(&self) -> bool {
        self.open
            .first()
            .is_some_and(|choice| choice.len() == self.accepted)
    }

    fn plan(&self) -> Plan {
        if self.ended || self.open.len() == 1 && self.complete() {
            return Plan::Stop;
        }
        let shared = self.shared();
        if !shared.is_empty() {
            return Plan::force(shared);
        }
        // The choices are sorted, so equal tokens stand together.
        let mut next: Vec<Token> = self
            .open
            .iter()
            .filter_map(|choice| choice.get(self.accepted).copied())
            .collect();
        next.dedup();
        if self.complete() {
            next.extend(&self.ends);
        }
        Plan::only(next)
    }

    /// What all open choices go on with: there the model has nothing to pick.
    fn shared(&self) -> Vec<Token> {
        let mut rests = self.open.iter().map(|choice| &choice[self.accepted..]);
        let first = rests.next().unwrap_or_default();
        let length = rests.fold(first.len().min(MOST_FORCED), |length, rest| {
            let same = |(a, b): &(&Token, &Token)| a == b;
            first.iter().zip(rest).take(length).take_while(same).count()
        });
        first[..length].to_vec()
    }
}

processor!(Choice);

#[cfg(test)]
mod tests {
    use realm_program::{Allowed, Draw};

    use super::*;

    const END: Token = 99;

    fn choice(choices: &[&[Token]]) -> Choice {
        let choices = choices.iter().map(|choice| choice.to_vec()).collect();
        Choice::new(choices, vec![END]).unwrap()
    }

    /// What may be drawn, or a panic.
    fn drawn(plan: Plan) -> Vec<Token> {
        match plan {
            Plan::Draw(Draw {
                allowed: Allowed::Tokens(tokens),
                ..
            }) => tokens,
            plan => panic!("{plan:?} is no draw of some tokens"),
        }
    }

    fn forced(plan: Plan) -> Vec<Token> {
        match plan {
            Plan::Force(tokens) => tokens,
            plan => panic!("{plan:?} forces nothing"),
        }
    }

    #[test]
    fn one_of_two_is_drawn_and_then_the_answer_stops() {
        let mut choice = choice(&[&[5], &[3]]);
        assert_eq!(drawn(choice.advance(&[]).unwrap()), [3, 5]);
        assert!(matches!(choice.advance(&[5]).unwrap(), Plan::Stop));
    }

    #[test]
    fn what_is_not_to_be_picked_is_forced() {
        let mut choice = choice(&[&[1, 2, 3, 4], &[1, 2, 5, 6, 7], &[1, 2, 5, 8]]);
        assert_eq!(forced(choice.advance(&[]).unwrap()), [1, 2]);
        assert_eq!(drawn(choice.advance(&[1, 2]).unwrap()), [3, 5]);
        assert_eq!(drawn(choice.advance(&[5]).unwrap()), [6, 8]);
        assert_eq!(forced(choice.advance(&[6]).unwrap()), [7]);
        assert!(matches!(choice.advance(&[7]).unwrap(), Plan::Stop));
    }

    #[test]
    fn a_choice_that_begins_another_may_end() {
        let begin = || {
            let mut choice = choice(&[&[1], &[1, 2, 3], &[1, 4]]);
            assert_eq!(forced(choice.advance(&[]).unwrap()), [1]);
            assert_eq!(drawn(choice.advance(&[1]).unwrap()), [2, 4, END]);
            choice
        };
        assert!(matches!(begin().advance(&[END]).unwrap(), Plan::Stop));
        assert!(matches!(begin().advance(&[4]).unwrap(), Plan::Stop));
        assert_eq!(forced(begin().advance(&[2]).unwrap()), [3]);
        assert!(begin().advance(&[7]).is_err());
    }

    #[test]
    fn the_same_choice_twice_is_one() {
        let mut choice = choice(&[&[1, 2], &[1, 2]]);
        assert_eq!(forced(choice.advance(&[]).unwrap()), [1, 2]);
        assert!(matches!(choice.advance(&[1, 2]).unwrap(), Plan::Stop));
    }

    #[test]
    fn a_long_choice_is_forced_in_portions() {
        let long: Vec<Token> = (0..5000).collect();
        let mut choice = choice(&[&long]);
        assert_eq!(forced(choice.advance(&[]).unwrap()), long[..MOST_FORCED]);
        let rest = choice.advance(&long[..MOST_FORCED]).unwrap();
        assert_eq!(forced(rest), long[MOST_FORCED..]);
    }

    #[test]
    fn choices_that_cannot_all_be_answered_are_refused() {
        let refused = |choices: &[&[Token]], ends: &[Token]| {
            let choices = choices.iter().map(|choice| choice.to_vec()).collect();
            Choice::new(choices, ends.to_vec())
                .err()
                .unwrap()
                .message()
                .to_owned()
        };
        assert!(refused(&[], &[END]).contains("at least one"));
        assert!(refused(&[&[1], &[]], &[END]).contains("empty"));
        assert!(refused(&[&[1, 2], &[1]], &[]).contains("begins another"));
        assert!(Choice::new(vec![vec![1, 2], vec![1, 3]], vec![]).is_ok());
    }
}
