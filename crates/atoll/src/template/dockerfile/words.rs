//! Words of a Dockerfile: where one ends, and what it says once its quotes and escapes are gone.

use std::{collections::BTreeMap, iter::Peekable, str::Chars};

/// Splits at spaces outside of quotes. Quotes and escapes stay, for [`plain`].
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match quote {
            None if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(character, '\'' | '"') => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ => {}
        }
        word.push(character);
        if character == escape && quote != Some('\'') {
            word.extend(characters.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A word without its quotes and escapes.
///
/// With `variables`, references to them are replaced, and an unknown one is empty. Without, they stay
/// as they are, for the build to replace.
///
/// # Errors
/// What is wrong with the word.
pub(super) fn plain(
    word: &str,
    escape: char,
    variables: Option<&BTreeMap<String, String>>,
) -> Result<String, String> {
    let mut reader = Reader { characters: word.chars().peekable(), escape, variables };
    reader.until(None, false).map_err(|error| format!("{word:?}: {error}"))
}

struct Reader<'a> {
    characters: Peekable<Chars<'a>>,
    escape: char,
    variables: Option<&'a BTreeMap<String, String>>,
}

impl Reader<'_> {
    /// Reads to `stop`, which is taken too, or to the end. `raw` keeps escapes, as patterns need them.
    fn until(&mut self, stop: Option<char>, raw: bool) -> Result<String, String> {
        let mut text = String::new();
        while let Some(&character) = self.characters.peek() {
            if character == '$' {
                text.push_str(&self.variable()?);
                continue;
            }
            self.characters.next();
            match character {
                _ if Some(character) == stop => return Ok(text),
                '\'' => text.push_str(&self.single_quoted()?),
                '"' => text.push_str(&self.double_quoted(raw)?),
                _ if character == self.escape => {
                    text.extend(raw.then_some(character));
                    text.extend(self.characters.next());
                }
                _ => text.push(character),
            }
        }
        match stop {
            Some(stop) => Err(format!("a {stop:?} is missing")),
            None => Ok(text),
        }
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.characters.next() {
                Some('\'') => return Ok(text),
                Some(character) => text.push(character),
                None => return Err("a single quote is not closed".to_owned()),
            }
        }
    }

    fn double_quoted(&mut self, raw: bool) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.characters.peek().copied() {
                Some('$') => {
                    text.push_str(&self.variable()?);
                    continue;
                }
                None => return Err("a double quote is not closed".to_owned()),
                Some(_) => {}
            }
            match self.characters.next() {
                Some('"') | None => return Ok(text),
                Some(character) if character == self.escape => {
                    // It escapes only what has a meaning here.
                    let escape = self.escape;
                    let next = self.characters.next_if(|&next| ['"', '$', escape].contains(&next));
                    text.extend((raw || next.is_none()).then_some(character));
                    text.extend(next);
                }
                Some(character) => text.push(character),
            }
        }
    }

    /// A reference: `$NAME`, `${NAME}` or `${NAME:-word}` and its like.
    fn variable(&mut self) -> Result<String, String> {
        self.characters.next();
        if self.characters.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(match self.variables {
                Some(variables) if !name.is_empty() => {
                    variables.get(&name).cloned().unwrap_or_default()
                }
                _ => format!("${name}"),
            });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("a name is missing after \"${\"".to_owned());
        }
        let mut operator = String::new();
        operator.extend(self.characters.next());
        if operator == "}" {
            return Ok(match self.variables {
                Some(variables) => variables.get(&name).cloned().unwrap_or_default(),
                None => format!("${{{name}}}"),
            });
        }
        if operator == ":" {
            operator.extend(self.characters.next());
        }
        self.modified(&name, &operator)
    }

    /// The rest of `${NAME` after an operator.
    fn modified(&mut self, name: &str, operator: &str) -> Result<String, String> {
        let word = match operator {
            "" | ":" => return Err("a '}' is missing".to_owned()),
            "/" => {
                let all = self.characters.next_if_eq(&'/').map_or("", |_| "/");
                let pattern = self.until(Some('/'), true)?;
                format!("{all}{pattern}/{}", self.until(Some('}'), true)?)
            }
            "#" | "%" => self.until(Some('}'), true)?,
            "-" | "+" | "?" | ":-" | ":+" | ":?" => self.until(Some('}'), false)?,
            _ => return Err(format!("{operator:?} is not known in \"${{{name}\"")),
        };
        let Some(variables) = self.variables else {
            return Ok(format!("${{{name}{operator}{word}}}"));
        };
        let value =
            variables.get(name).filter(|value| !operator.starts_with(':') || !value.is_empty());
        match (operator.trim_start_matches(':'), value) {
            ("-", value) => Ok(value.cloned().unwrap_or(word)),
            ("+", value) => Ok(value.map(|_| word).unwrap_or_default()),
            ("?", Some(value)) => Ok(value.clone()),
            ("?", None) => Err(format!("{name} has no value {word}").trim_end().to_owned()),
            _ => Err(format!("{operator:?} is not supported here in \"${{{name}\"")),
        }
    }

    /// Digits, one of the shell's own, or letters, digits and underscores.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let digits = self.characters.peek().is_some_and(char::is_ascii_digit);
        while let Some(next) = self.characters.next_if(|next| {
            if digits { next.is_ascii_digit() } else { next.is_alphanumeric() || *next == '_' }
        }) {
            name.push(next);
        }
        if name.is_empty() {
            name.extend(self.characters.next_if(|next| "@*#?-$!".contains(*next)));
        }
        name
    }
}

/// Words as one line that a shell reads as these words.
pub(super) fn join(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "_@%+=:,./-".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r#"'"'"'"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_spaces_outside_of_quotes() {
        for (text, expected) in [
            ("a  b\tc", vec!["a", "b", "c"]),
            (r#""a b" 'c d'e"#, vec![r#""a b""#, "'c d'e"]),
            (r"a\ b c", vec![r"a\ b", "c"]),
            (r#"'it\' x"#, vec![r"'it\'", "x"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text, '\\'), expected, "{text}");
        }
    }

    /// As `ShellLex` of the published SDK has them.
    #[test]
    fn quotes_and_escapes_go_and_references_stay() {
        for (word, expected) in [
            (r#""a b"c"#, "a bc"),
            (r#"'$x "y"'"#, r#"$x "y""#),
            (r#""\$x \n \"""#, r#"$x \n ""#),
            (r"a\ b\\", r"a b\"),
            ("$HOME/x", "$HOME/x"),
            ("${A}b$", "${A}b$"),
            (r#"${A:-"x y"}"#, "${A:-x y}"),
            ("${A#v*}", "${A#v*}"),
            ("${A//x/y}", "${A//x/y}"),
            ("$1a$?", "$1a$?"),
        ] {
            assert_eq!(plain(word, '\\', None).unwrap(), expected, "{word}");
        }
        assert_eq!(plain(r"C:\x`\", '`', None).unwrap(), r"C:\x\");
    }

    #[test]
    fn references_are_replaced_where_that_is_asked_for() {
        let variables: BTreeMap<String, String> =
            [("V", "3.11"), ("E", "")].map(|(name, value)| (name.into(), value.into())).into();
        for (word, expected) in [
            ("python:$V", "python:3.11"),
            ("a${V}b$N", "a3.11b"),
            ("${N:-x}${E:-y}${E-z}", "xy"),
            ("${V:+set}${N+set}", "set"),
            ("${V?}", "3.11"),
            ("'$V'", "$V"),
        ] {
            assert_eq!(plain(word, '\\', Some(&variables)).unwrap(), expected, "{word}");
        }
        for word in ["${N?}", "${V#3}", "${V/3/4}"] {
            assert!(plain(word, '\\', Some(&variables)).is_err(), "{word}");
        }
    }

    #[test]
    fn what_is_not_closed_is_an_error() {
        for word in
            ["'a", "\"a", "${", "${A", "${A:", "${A:-x", "${}", "${A:#x}", "${A/x}", "${A!}"]
        {
            assert!(plain(word, '\\', None).is_err(), "{word}");
        }
    }

    #[test]
    fn a_shell_reads_joined_words_as_they_were() {
        let words = ["python3", "-c", "print('x y')", "", "$HOME"].map(str::to_owned);
        assert_eq!(join(&words), r#"python3 -c 'print('"'"'x y'"'"')' '' '$HOME'"#);
    }
}
