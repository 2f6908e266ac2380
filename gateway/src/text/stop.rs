//! Stop strings in a stream of text.

/// Finds the first stop string in text that comes in pieces, and never lets through a part of it.
///
/// Of several stop strings the one that is complete first counts; of those complete at the same
/// character, the longest. Both depend on the text alone, never on where tokens end.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text seen and not let through: the start of what may become a stop string.
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// No stop string so far.
    Open,
    /// A stop string is complete: what was let through is all there is.
    Hit,
}

impl StopMatcher {
    /// Looks for `stops`, none of which may be empty.
    pub fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|s| !s.is_empty()));
        StopMatcher {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece; appends to `text` what is certain to precede any stop string.
    pub fn push(&mut self, piece: &str, text: &mut String) -> Search {
        if self.stops.is_empty() {
            text.push_str(piece);
            return Search::Open;
        }
        self.held.push_str(piece);
        let hit = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at)))
            .min();
        if let Some((_, start)) = hit {
            text.push_str(&self.held[..start]);
            self.held.clear();
            return Search::Hit;
        }
        let certain = self.certain();
        text.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        Search::Open
    }

    /// Appends what was held back, once no text follows.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
    }

    /// Bytes of `held` before the longest end of it with which a stop string begins.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let reach = self.held.len().saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|&at| at >= reach)
            .find(|&at| self.stops.iter().any(|s| s.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut text = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut text) == Search::Hit {
                return (text, true);
            }
        }
        matcher.finish(&mut text);
        (text, false)
    }

    /// Grows the text by one character at a time until it ends with a stop string.
    fn naive(stops: &[String], whole: &str) -> (String, bool) {
        for (at, c) in whole.char_indices() {
            let seen = &whole[..at + c.len_utf8()];
            let ended = stops.iter().filter(|s| seen.ends_with(s.as_str()));
            if let Some(longest) = ended.map(String::len).max() {
                return (seen[..seen.len() - longest].to_owned(), true);
            }
        }
        (whole.to_owned(), false)
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_is_let_through() {
        let mut m = StopMatcher::new(vec!["END".into()]);
        let mut text = String::new();
        assert_eq!(m.push("the E", &mut text), Search::Open);
        assert_eq!(text, "the ");
        assert_eq!(m.push("N", &mut text), Search::Open);
        assert_eq!(text, "the ");
        assert_eq!(m.push("GINE EN", &mut text), Search::Open);
        assert_eq!(text, "the ENGINE ");
        assert_eq!(m.push("D and more", &mut text), Search::Hit);
        assert_eq!(text, "the ENGINE ");
    }

    #[test]
    fn one_stop_string_equals_the_earliest_find() {
        let stops = ["aab".to_owned()];
        let (text, hit) = run(&stops, &["aa".into(), "aab".into()]);
        assert_eq!((text.as_str(), hit), ("aa", true));
        assert_eq!("aaaab".find("aab"), Some(2));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            stops in prop::collection::vec("[abé]{1,4}", 0..5),
            pieces in prop::collection::vec("[abcé]{0,4}", 0..16),
        ) {
            prop_assert_eq!(run(&stops, &pieces), naive(&stops, &pieces.concat()));
        }

        #[test]
        fn a_single_stop_string_cuts_where_find_finds_it(
            stop in "[ab]{1,3}",
            pieces in prop::collection::vec("[abc]{0,3}", 0..16),
        ) {
            let whole = pieces.concat();
            let found = whole.find(&stop);
            let (text, hit) = run(&[stop], &pieces);
            prop_assert_eq!(hit, found.is_some());
            prop_assert_eq!(text, &whole[..found.unwrap_or(whole.len())]);
        }

        /// No more is held back than may still become a stop string.
        #[test]
        fn little_is_held_back(
            stops in prop::collection::vec("[ab]{1,4}", 1..5),
            pieces in prop::collection::vec("[abc]{0,4}", 0..16),
        ) {
            let mut m = StopMatcher::new(stops.clone());
            let (mut text, mut seen) = (String::new(), String::new());
            for piece in &pieces {
                seen.push_str(piece);
                if m.push(piece, &mut text) == Search::Hit {
                    break;
                }
                let held = &seen[text.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|s| s.starts_with(held)));
            }
        }
    }
}
