//! What a sandbox prints, for a terminal that is to show it and do nothing else.

use anstyle_parse::state::{Action, State, state_change};

/// The most parameters of a change of colours, in characters.
const MAX_PARAMETERS: usize = 64;

/// Ends the text of a title and the like; so does ESC `\`.
const STRING_TERMINATOR: char = '\u{9c}';

/// Takes all out of a text that a terminal would obey: whoever prints it cannot move the cursor, set the
/// title, ask the terminal anything or write to the clipboard. Of one stream, which comes in pieces: a
/// sequence that is split between two is still one.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    for_output: bool,
    state: State,
    /// Of the control sequence that is being read, unless it cannot be a change of colours.
    parameters: Option<String>,
    is_coloured: bool,
}

impl Filter {
    /// Lets through characters, ends of lines and tabs.
    pub(crate) fn plain() -> Self {
        Self::default()
    }

    /// Lets through colours too, and the returns to the start of a line by which programs show how far
    /// they are.
    pub(crate) fn for_output() -> Self {
        Self { for_output: true, ..Self::default() }
    }

    /// Forgets a sequence that has begun: what comes is not of the same text.
    pub(crate) fn begin(&mut self) {
        self.state = State::Ground;
    }

    /// What is left of the next piece.
    pub(crate) fn pass(&mut self, text: &str) -> String {
        let mut passed = String::with_capacity(text.len());
        for character in text.chars() {
            match u8::try_from(character) {
                Ok(byte) if byte.is_ascii() => self.read(byte, &mut passed),
                _ => self.read_beyond_ascii(character, &mut passed),
            }
        }
        passed
    }

    /// What takes back the colours that are set, if there are any.
    pub(crate) fn end(&mut self) -> &'static str {
        if std::mem::take(&mut self.is_coloured) { "\u{1b}[0m" } else { "" }
    }

    fn read(&mut self, byte: u8, passed: &mut String) {
        let (next, action) = state_change(self.state, byte);
        match action {
            Action::Print | Action::Execute if self.shows(byte) => passed.push(byte.into()),
            Action::Param => {
                let parameters = self.parameters.take().filter(|read| read.len() < MAX_PARAMETERS);
                self.parameters =
                    parameters.map(|read| read + char::from(byte).encode_utf8(&mut [0]));
            }
            // Then `m` is something else.
            Action::Collect => self.parameters = None,
            Action::CsiDispatch if byte == b'm' && self.for_output => self.colour(passed),
            _ => {}
        }
        if next == State::CsiEntry {
            self.parameters = Some(String::new());
        }
        if next != State::Anywhere {
            self.state = next;
        }
    }

    fn shows(&self, byte: u8) -> bool {
        !byte.is_ascii_control() || b"\n\t".contains(&byte) || byte == b'\r' && self.for_output
    }

    fn colour(&mut self, passed: &mut String) {
        if let Some(parameters) = &self.parameters {
            self.is_coloured = !["", "0"].contains(&parameters.as_str());
            passed.push_str(&format!("\u{1b}[{parameters}m"));
        }
    }

    /// Terminals obey some of these characters alone: they are not let through, so what is behind them
    /// is text.
    fn read_beyond_ascii(&mut self, character: char, passed: &mut String) {
        use State::{DcsIgnore, DcsPassthrough, OscString, SosPmApcString};
        if matches!(self.state, OscString | DcsPassthrough | DcsIgnore | SosPmApcString) {
            if character == STRING_TERMINATOR {
                self.state = State::Ground;
            }
            return;
        }
        // No sequence has them.
        self.state = State::Ground;
        if !character.is_control() {
            passed.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed of a text, which must not depend on how it is split.
    fn passed(mut filter: impl FnMut() -> Filter, text: &str) -> String {
        let whole = filter().pass(text);
        for (at, _) in text.char_indices() {
            let mut filter = filter();
            let (first, second) = text.split_at(at);
            assert_eq!(filter.pass(first) + &filter.pass(second), whole, "split at {at}");
        }
        let mut filter = filter();
        let single: String =
            text.chars().map(|one| filter.pass(one.encode_utf8(&mut [0; 4]))).collect();
        assert_eq!(single, whole);
        whole
    }

    #[test]
    fn text_is_passed_as_it_is() {
        let text = "a\tb\n\u{e9}\u{4e2d}\u{1f600} 100% [x] \\x1b[31m\n";
        assert_eq!(passed(Filter::plain, text), text);
        assert_eq!(passed(Filter::for_output, text), text);
    }

    #[test]
    fn what_a_terminal_would_obey_is_not() {
        for hostile in [
            "\u{1b}]52;c;Y3VybA==\u{7}",
            "\u{1b}]0;a title with \u{4e2d} and \u{7}",
            "\u{1b}]8;;http://a\u{1b}\\",
            "\u{1b}]0;ended\u{9c}",
            "\u{1b}[2J",
            "\u{1b}[3A",
            "\u{1b}[?1049h",
            "\u{1b}[6n",
            "\u{1b}[>4;2m",
            "\u{1b}[?4m",
            "\u{1b}[1!m",
            "\u{1b}P+q544e\u{1b}\\",
            "\u{1b}P1$r0m\u{9c}",
            "\u{1b}_G\u{4e2d}\u{1b}\\",
            "\u{1b}^private\u{1b}\\",
            "\u{1b}c",
            "\u{1b}(0",
            "\u{1b}#8",
            "\u{8}\u{7}\u{b}\u{c}\u{e}\u{f}\u{0}\u{7f}\u{1b}",
        ] {
            let text = format!("a{hostile}");
            assert_eq!(passed(Filter::for_output, &text), "a", "{hostile:?}");
            assert_eq!(passed(Filter::plain, &text), "a", "{hostile:?}");
        }
    }

    #[test]
    fn no_control_gets_through_whatever_comes() {
        // What may make or end a sequence, in all orders.
        let parts = [
            "\u{1b}", "[", "]", "P", "m", "1", ";", "?", "\u{9b}", "\u{9d}", "\u{9c}", "\u{7}",
            "\n",
        ];
        let mut filter = Filter::for_output();
        for number in 0..parts.len().pow(4) {
            let part = |place: u32| parts[number / parts.len().pow(place) % parts.len()];
            let passed = filter.pass(&[part(0), part(1), part(2), part(3)].concat());
            for after in passed.split('\u{1b}').skip(1) {
                let parameters = after.strip_prefix('[').and_then(|after| after.split_once('m'));
                let parameters = parameters.expect("colours").0;
                assert!(parameters.chars().all(|one| ['1', ';'].contains(&one)), "{passed:?}");
            }
            assert!(!passed.contains(|one: char| one.is_control() && !"\n\u{1b}".contains(one)));
        }
    }

    #[test]
    fn one_character_controls_leave_what_is_behind_them() {
        assert_eq!(passed(Filter::for_output, "a\u{9b}2Jb\u{9d}0;c\u{90}d\u{85}"), "a2Jb0;cd");
        // Half of a sequence, and then something else.
        assert_eq!(passed(Filter::for_output, "\u{1b}[3\u{e9}\u{1b}\u{9b}1m"), "\u{e9}1m");
    }

    #[test]
    fn colours_and_returns_are_passed_of_output_alone() {
        let text = "\u{1b}[1;31mred\u{1b}[m\r\u{1b}[38:2::1:2:3mso\u{1b}[38;5;9mso\u{1b}[0m\n";
        assert_eq!(passed(Filter::for_output, text), text);
        assert_eq!(passed(Filter::plain, text), "redsoso\n");
        let long = format!("\u{1b}[{}m", "1;".repeat(MAX_PARAMETERS));
        assert_eq!(passed(Filter::for_output, &long), "");
    }

    #[test]
    fn a_title_without_an_end_hides_no_other_text() {
        let mut filter = Filter::for_output();
        assert_eq!(filter.pass("a\u{1b}]0;b") + &filter.pass("c"), "a");
        filter.begin();
        assert_eq!(filter.pass("d"), "d");
    }

    #[test]
    fn colours_are_taken_back() {
        let mut filter = Filter::for_output();
        for (text, end) in
            [("a", ""), ("\u{1b}[1m", "\u{1b}[0m"), ("", ""), ("\u{1b}[1m\u{1b}[m", "")]
        {
            filter.pass(text);
            assert_eq!(filter.end(), end, "{text:?}");
        }
    }
}
