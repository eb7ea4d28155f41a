//! What `.dockerignore` leaves out.

use super::pattern::Pattern;

/// Patterns in the order of the file: the last that matches decides.
#[derive(Debug, Default)]
pub(super) struct Ignore(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    /// `!`: what it matches is kept.
    keeps: bool,
    text: String,
    pattern: Pattern,
}

impl Ignore {
    /// Reads the file's lines.
    ///
    /// # Errors
    /// The line that is no pattern, and why.
    pub(super) fn new(content: &str) -> Result<Self, String> {
        let content = content.strip_prefix('\u{feff}').unwrap_or(content);
        let mut rules = Vec::new();
        for line in content.lines().filter(|line| !line.starts_with('#')) {
            let line = line.trim();
            let (keeps, text) = match line.strip_prefix('!') {
                Some(text) => (true, text.trim()),
                None => (false, line),
            };
            if text.is_empty() && !keeps {
                continue;
            }
            let text = clean(text);
            let pattern = Pattern::new(&text);
            let pattern = pattern.map_err(|error| format!("{line:?}: {error}"))?;
            rules.push(Rule { keeps, text, pattern });
        }
        Ok(Self(rules))
    }

    /// Whether a path is left out. A rule for a directory is one for all below it.
    pub(super) fn matches(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(index, _)| index).chain([path.len()]);
        // Which rules matched the directory above.
        let mut above = vec![false; self.0.len()];
        let mut ignored = false;
        for end in ends {
            ignored = false;
            for (rule, matched) in self.0.iter().zip(&mut above) {
                if !*matched {
                    // It would change nothing.
                    if rule.keeps != ignored {
                        continue;
                    }
                    *matched = rule.pattern.matches(&path[..end]);
                }
                if *matched {
                    ignored = !rule.keeps;
                }
            }
        }
        ignored
    }

    /// Whether something below a directory that is left out may be kept.
    pub(super) fn may_keep_below(&self, directory: &str) -> bool {
        self.0.iter().filter(|rule| rule.keeps).any(|rule| {
            let mut own = rule.text.split('/');
            for part in directory.split('/') {
                match own.next() {
                    None => return false,
                    Some(segment) if segment.contains("**") => return true,
                    Some(segment) if segment.contains(['*', '?', '[', '\\']) => {}
                    Some(segment) if segment != part => return false,
                    Some(_) => {}
                }
            }
            own.next().is_some()
        })
    }
}

/// A path without `.`, `..`, doubled slashes and one at its beginning.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            // Above the root is the root.
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each as the matcher of the published SDK has it.
    #[test]
    fn the_last_rule_decides() {
        let ignore = Ignore::new(
            "\u{feff}# comment\n\n  /build/ \r\n*.log\n!keep.log\nnode_modules\n**/__pycache__\n\
             data/*\n!data/kept\ndocs/../x\n./a//b\n",
        )
        .unwrap();
        for (path, expected) in [
            ("build", true),
            ("build/deep/er", true),
            ("src/build", false),
            ("a.log", true),
            ("keep.log", false),
            ("sub/a.log", false),
            ("node_modules/x", true),
            ("sub/node_modules", false),
            ("__pycache__", true),
            ("a/b/__pycache__/c.pyc", true),
            ("data", false),
            ("data/other", true),
            ("data/kept", false),
            ("data/kept/deep", false),
            ("x", true),
            ("a/b", true),
            ("a", false),
        ] {
            assert_eq!(ignore.matches(path), expected, "{path}");
        }
    }

    #[test]
    fn a_rule_that_keeps_reaches_into_what_is_left_out() {
        let ignore = Ignore::new("*\n!src/*.py\n!**/README\n").unwrap();
        assert!(
            ignore.matches("src") && !ignore.matches("src/a.py") && ignore.matches("src/a.txt")
        );
        assert!(!ignore.matches("a/b/README"));
        assert!(ignore.may_keep_below("anything"));
        let ignore = Ignore::new("*\n!src/a/*.py\n").unwrap();
        assert!(ignore.may_keep_below("src") && ignore.may_keep_below("src/a"));
        assert!(!ignore.may_keep_below("lib") && !ignore.may_keep_below("src/a/b"));
    }

    #[test]
    fn what_is_no_pattern_is_an_error() {
        assert!(Ignore::new("ok\n[a\n").unwrap_err().contains("[a"));
    }
}
