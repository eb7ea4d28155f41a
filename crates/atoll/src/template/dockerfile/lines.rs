//! Lines of a Dockerfile as instructions: comments, directives, continued lines, flags and
//! here-documents.

use std::{iter::Peekable, str::Lines};

use atoll_core::Result;

use super::{refuse, words};

/// What ends a line that goes on, unless a directive says otherwise.
const ESCAPE: char = '\\';

/// One instruction.
#[derive(Debug)]
pub(super) struct Instruction {
    /// Its keyword, in capital letters.
    pub(super) name: String,
    /// `--name` or `--name=value` in front of the rest.
    pub(super) flags: Vec<(String, Option<String>)>,
    /// The rest, on one line.
    pub(super) text: String,
    /// The documents that its lines are followed by.
    pub(super) documents: Vec<Document>,
    /// Where it begins, from 1 on.
    pub(super) line: usize,
}

/// A here-document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// The line that ends it.
    pub(super) name: String,
    /// Each line with its end.
    pub(super) content: String,
    /// `<<-`: tabs at the beginning of lines do not count.
    pub(super) strips_tabs: bool,
}

/// All instructions, and the character that escapes.
pub(super) fn parse(content: &str) -> Result<(Vec<Instruction>, char)> {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let mut reader = Reader { lines: content.lines().peekable(), line: 0 };
    let escape = reader.directives()?;
    let mut instructions = Vec::new();
    while let Some(instruction) = reader.instruction(escape)? {
        instructions.push(instruction);
    }
    Ok((instructions, escape))
}

struct Reader<'a> {
    lines: Peekable<Lines<'a>>,
    /// Number of the last line that was taken.
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let line = self.lines.next()?;
        self.line += 1;
        Some(line)
    }

    /// Directives are comments before everything else; returns what `escape` says.
    fn directives(&mut self) -> Result<char> {
        let mut escape = None;
        while let Some((key, value)) = self.lines.peek().and_then(|line| directive(line)) {
            self.next();
            match (key.as_str(), value) {
                ("escape", _) if escape.is_some() => {
                    return Err(refuse(
                        self.line,
                        "there is a second escape directive.",
                        "Leave one out.",
                    ));
                }
                ("escape", "\\" | "`") => escape = value.chars().next(),
                ("escape", _) => {
                    let what = format!("{value:?} cannot be what escapes.");
                    return Err(refuse(self.line, what, "Use \\ or `."));
                }
                // They choose a version and checks of Docker's.
                _ => {}
            }
        }
        Ok(escape.unwrap_or(ESCAPE))
    }

    fn instruction(&mut self, escape: char) -> Result<Option<Instruction>> {
        let mut text;
        loop {
            let Some(line) = self.next() else { return Ok(None) };
            text = line.trim_start().to_owned();
            if !text.is_empty() && !text.starts_with('#') {
                break;
            }
        }
        let line = self.line;
        while let Some(kept) = continued(&text, escape) {
            text.truncate(kept);
            // Comments and empty lines in between do not count.
            let next = loop {
                let next = self.next();
                let skips = |next: &str| next.is_empty() || next.starts_with('#');
                if next.is_none_or(|next| !skips(next.trim_start())) {
                    break next;
                }
            };
            match next {
                Some(next) => text.push_str(next),
                None => break,
            }
        }
        let text = text.trim();
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (flags, rest) = flags(rest, escape);
        let mut instruction = Instruction {
            name: name.to_uppercase(),
            flags,
            text: rest.trim().to_owned(),
            documents: Vec::new(),
            line,
        };
        if ["RUN", "COPY", "ADD"].contains(&instruction.name.as_str()) {
            instruction.documents = self.documents(&instruction.text, line)?;
        }
        Ok(Some(instruction))
    }

    /// Reads the documents that a line announces.
    fn documents(&mut self, text: &str, line: usize) -> Result<Vec<Document>> {
        let mut documents = announced(text);
        for document in &mut documents {
            loop {
                let Some(next) = self.next() else {
                    let what = format!("the here-document {:?} does not end.", document.name);
                    return Err(refuse(line, what, "End it with a line that has this word only."));
                };
                let end = if document.strips_tabs { next.trim_start_matches('\t') } else { next };
                if end == document.name {
                    break;
                }
                document.content.push_str(next);
                document.content.push('\n');
            }
        }
        Ok(documents)
    }
}

/// `# key=value`, with a key that Docker knows.
fn directive(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim().to_lowercase(), value.trim());
    let is_known = ["escape", "syntax", "check"].contains(&key.as_str());
    (is_known && !value.is_empty()).then_some((key, value))
}

/// How much of a line counts if it goes on: it ends with one escape.
fn continued(line: &str, escape: char) -> Option<usize> {
    let kept = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!kept.ends_with(escape)).then_some(kept.len())
}

/// Flags at the beginning, and what is behind them.
fn flags(text: &str, escape: char) -> (Vec<(String, Option<String>)>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let mut end = 0;
        let (mut quote, mut escaped) = (None, false);
        for (index, character) in rest.char_indices() {
            match quote {
                _ if escaped => escaped = false,
                _ if character == escape => escaped = true,
                None if character.is_whitespace() => break,
                None if matches!(character, '\'' | '"') => quote = Some(character),
                Some(open) if open == character => quote = None,
                _ => {}
            }
            end = index + character.len_utf8();
        }
        let (flag, behind) = rest.split_at(end);
        rest = behind.trim_start();
        if flag == "--" {
            break;
        }
        let flag: String = flag[2..].replace(['\'', '"'], "");
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag.as_str(), None),
        };
        flags.push((name.to_owned(), value));
    }
    (flags, rest)
}

/// The documents that a line announces, still empty.
fn announced(text: &str) -> Vec<Document> {
    // In JSON there are no documents.
    if text.starts_with('[') && super::json(text).is_ok_and(|list| list.is_some()) {
        return Vec::new();
    }
    let mut documents = Vec::new();
    let mut parts = words::split(text, ESCAPE).into_iter();
    while let Some(mut word) = parts.next() {
        // There may be spaces before the name.
        if word.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<" {
            word.extend(parts.next());
        }
        documents.extend(marker(&word));
    }
    documents
}

/// `<<NAME`, `<<-NAME` or `3<<NAME`; no other redirection.
pub(super) fn marker(word: &str) -> Option<Document> {
    let word = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strips_tabs, name) = match word.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, word),
    };
    if name.contains('<') {
        return None;
    }
    let name = words::plain(name, ESCAPE, None).ok().filter(|name| !name.is_empty())?;
    Some(Document { name, content: String::new(), strips_tabs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(content: &str) -> Vec<(usize, String, String)> {
        let (instructions, _) = parse(content).unwrap();
        let text = |one: Instruction| (one.line, one.name, one.text);
        instructions.into_iter().map(text).collect()
    }

    fn one(line: usize, name: &str, text: &str) -> (usize, String, String) {
        (line, name.to_owned(), text.to_owned())
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let content = "\u{feff}# a comment\r\n\r\nfrom  a \r\nRUN b \\\r\n  # no\n\n  c \\ \n d\n\
                       \x20 RUN e\\\\\nRUN f \\";
        assert_eq!(
            texts(content),
            [
                one(3, "FROM", "a"),
                one(4, "RUN", "b   c  d"),
                one(9, "RUN", "e\\\\"),
                one(10, "RUN", "f")
            ]
        );
    }

    #[test]
    fn a_directive_changes_what_escapes() {
        assert_eq!(
            texts("# escape=`\nRUN a `\n b\\\nRUN c"),
            [one(2, "RUN", "a  b\\"), one(4, "RUN", "c")]
        );
        // After anything else it is a comment.
        assert_eq!(
            texts("\n# escape=`\nRUN a `\nRUN b"),
            [one(3, "RUN", "a `"), one(4, "RUN", "b")]
        );
        assert!(parse("# escape=x\n").unwrap_err().to_string().contains("line 1"));
        assert!(parse("# escape=`\n# Escape = `\n").is_err());
    }

    #[test]
    fn flags_stand_in_front() {
        let (instructions, _) =
            parse("COPY --chown=a:b --link --chmod='0 7' -- --x /y --z\n").unwrap();
        let value = |text: &str| Some(text.to_owned());
        assert_eq!(
            instructions[0].flags,
            [("chown".into(), value("a:b")), ("link".into(), None), ("chmod".into(), value("0 7"))]
        );
        assert_eq!(instructions[0].text, "--x /y --z");
    }

    #[test]
    fn documents_follow_their_line() {
        let content =
            "RUN cat <<A > x && cat <<-\"B\" 3<<C\na\nA\n\tb\n\tB\nC\nRUN echo <<<x $((1<<2))\n";
        let (instructions, _) = parse(content).unwrap();
        let document = |name: &str, content: &str, strips_tabs| Document {
            name: name.to_owned(),
            content: content.to_owned(),
            strips_tabs,
        };
        let expected =
            [document("A", "a\n", false), document("B", "\tb\n", true), document("C", "", false)];
        assert_eq!(instructions[0].documents, expected);
        assert_eq!(instructions[1].documents, []);
        assert!(parse("RUN <<EOF\nx\n").unwrap_err().to_string().contains("\"EOF\""));
    }
}
