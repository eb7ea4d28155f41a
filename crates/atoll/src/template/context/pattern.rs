//! Patterns of paths, in `.dockerignore` and in sources of COPY.

/// A pattern over a path with slashes.
#[derive(Debug)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug)]
enum Token {
    One(char),
    /// `?`
    AnyOne,
    /// `*`: all but slashes.
    Star,
    /// `**` at an end: all.
    All,
    /// `**/`: any directories, or none.
    Directories,
    /// `[…]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

const BAD: &str = "a pattern has brackets or a backslash that nothing follows";

impl Pattern {
    /// Reads a pattern as Docker does.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, &'static str> {
        let mut characters = text.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(character) = characters.next() {
            tokens.push(match character {
                '*' if characters.next_if_eq(&'*').is_some() => {
                    let slash = characters.next_if_eq(&'/').is_some();
                    let is_last = characters.peek().is_none();
                    // Docker takes `**name` for any ending in `name`.
                    let is_ending =
                        tokens.is_empty() && !slash && !text[2..].contains(['*', '?', '[', '\\']);
                    if is_last || is_ending { Token::All } else { Token::Directories }
                }
                '*' => Token::Star,
                '?' => Token::AnyOne,
                '\\' => Token::One(characters.next().ok_or(BAD)?),
                '[' => class(&mut characters)?,
                other => Token::One(other),
            });
        }
        Ok(Self(tokens))
    }

    /// Whether all of `path` is as the pattern says.
    pub(super) fn matches(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        // How much of the path the tokens so far may have taken.
        let mut ends = vec![false; path.len() + 1];
        ends[0] = true;
        for token in &self.0 {
            let mut next = vec![false; path.len() + 1];
            for start in (0..ends.len()).filter(|&start| ends[start]) {
                token.advance(&path, start, &mut next);
            }
            ends = next;
        }
        ends[path.len()]
    }
}

impl Token {
    /// Marks where this token may end when it begins at `start`.
    fn advance(&self, path: &[char], start: usize, ends: &mut [bool]) {
        match self {
            Self::Star => {
                let length = path[start..].iter().take_while(|&&c| c != '/').count();
                ends[start..=start + length].fill(true);
            }
            Self::All => ends[start..].fill(true),
            Self::Directories => {
                ends[start] = true;
                for index in start..path.len() {
                    ends[index + 1] |= path[index] == '/';
                }
            }
            _ => {
                if path.get(start).is_some_and(|&character| self.takes(character)) {
                    ends[start + 1] = true;
                }
            }
        }
    }

    fn takes(&self, character: char) -> bool {
        match self {
            Self::One(own) => *own == character,
            Self::AnyOne => character != '/',
            Self::Class { negated, ranges } => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&character)) != *negated
            }
            Self::Star | Self::All | Self::Directories => false,
        }
    }
}

fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    let negated = characters.next_if(|&c| c == '^' || c == '!').is_some();
    let mut ranges = Vec::new();
    let one = |first: char, rest: &mut std::iter::Peekable<std::str::Chars<'_>>| match first {
        '\\' => rest.next().ok_or(BAD),
        '-' | ']' => Err(BAD),
        other => Ok(other),
    };
    loop {
        let first = characters.next().ok_or(BAD)?;
        if first == ']' && !ranges.is_empty() {
            return Ok(Token::Class { negated, ranges });
        }
        let low = one(first, characters)?;
        let high = match characters.next_if_eq(&'-') {
            Some(_) => {
                let last = characters.next().ok_or(BAD)?;
                one(last, characters)?
            }
            None => low,
        };
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        for (pattern, path, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("*.py", "x.py", true),
            ("*.py", "a/x.py", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("**/x", "ax", false),
            ("**x", "ax", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("**/*.py", "a/x.py", true),
            ("**", "a/b", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("a.c", "abc", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
        for pattern in ["[", "[]", "[a", "[a-]", "[-a]", "\\", "[\\"] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }
}
