//! The table of rules: `tests/rules.toml`, joined with the tests that name each rule.
//!
//! Its head says how both are written. This reads them, finds what is not in order, and makes the
//! part of `docs/compatibility.md` about rules.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// What may stand in front of the ids in a source file.
const MARKS: [&str; 2] = ["# Rules:", "// Rules:"];

/// Directories with tests, below the root of the repository.
const TESTS: [&str; 5] =
    ["crates", "tests/conformance", "tests/network", "tests/security", "tests/stress"];

/// Directories with what others made.
const FOREIGN: [&str; 3] = ["node_modules", "target", "fuzz"];

/// One thing that clients can rely on, or that Atoll does not do.
struct Rule {
    id: String,
    text: String,
    /// Why Atoll does not do it.
    not: Option<String>,
}

/// Rules by section: those in the order of the contract, these in that of the file.
pub(crate) struct Rules(Vec<(String, Vec<Rule>)>);

/// The tests that name a rule: their names, by file.
type Tests = BTreeMap<PathBuf, Vec<String>>;

/// The tests that name each rule, by id.
#[derive(Default)]
pub(crate) struct Coverage(BTreeMap<String, Tests>);

impl Rules {
    /// Reads the text of `rules.toml`.
    ///
    /// # Errors
    /// With the place that is not understood.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error| format!("rules.toml: {error}"))?;
        let sections = table.into_iter().map(|(section, entries)| {
            let toml::Value::Table(entries) = entries else {
                return Err(format!("{section} stands outside of a section"));
            };
            let rules = entries.into_iter().map(|(id, entry)| Rule::new(id, &entry));
            Ok((section, rules.collect::<Result<_, _>>()?))
        });
        let mut sections: Vec<_> = sections.collect::<Result<_, _>>()?;
        sections.sort_by(|(one, _), (other, _)| place(one).cmp(&place(other)));
        Ok(Self(sections))
    }

    fn all(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().flat_map(|(_, rules)| rules)
    }

    /// What is wrong with the rules and the tests that name them, a line each.
    pub(crate) fn problems(&self, coverage: &Coverage) -> Vec<String> {
        let mut problems = Vec::new();
        let mut known: BTreeMap<&str, usize> = BTreeMap::new();
        for rule in self.all() {
            *known.entry(&rule.id).or_default() += 1;
            if rule.not.is_none() && !coverage.0.contains_key(&rule.id) {
                problems.push(format!("{}: no test, and no reason why not", rule.id));
            }
        }
        let twice = known.iter().filter(|(_, count)| **count > 1);
        problems.extend(twice.map(|(id, _)| format!("{id}: there are two rules of this id")));
        for (id, tests) in &coverage.0 {
            if !known.contains_key(id.as_str()) {
                let files = tests.keys().map(|file| file.display().to_string());
                let files: Vec<_> = files.collect();
                problems.push(format!("{id:?}: no such rule, but {} names it", files.join(", ")));
            }
        }
        problems
    }

    /// The part of the document about rules.
    pub(crate) fn markdown(&self, coverage: &Coverage) -> String {
        let not = self.all().filter(|rule| rule.not.is_some()).count();
        let mut text = format!(
            "\n## Rules\n\nWhat a client can rely on inside a sandbox, and the tests that hold \
             Atoll to it, made from\n`tests/rules.toml` and the tests. {} rules, {not} of them \
             with a reason why there is none.\n",
            self.all().count()
        );
        // Writing to a string does not fail.
        for (section, rules) in &self.0 {
            let _ = write!(text, "\n### {section}\n\n| id | rule | tests |\n|---|---|---|\n");
            for rule in rules {
                let cell = cell(rule.not.as_deref(), coverage.0.get(&rule.id));
                let _ = writeln!(text, "| {} | {} | {} |", rule.id, escaped(&rule.text), cell);
            }
        }
        text
    }
}

impl Rule {
    /// The entry `id = "rule"` or `id = { rule = "...", not = "..." }`.
    fn new(id: String, entry: &toml::Value) -> Result<Self, String> {
        let number = id.split_once('-').filter(|(prefix, number)| {
            prefix.bytes().all(|byte| byte.is_ascii_uppercase()) && number.parse::<u16>().is_ok()
        });
        number.ok_or_else(|| format!("{id}: an id is capital letters, a dash and a number"))?;
        let text = |value: Option<&toml::Value>| {
            value.and_then(toml::Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let found = match entry {
            toml::Value::Table(entry) if entry.len() == 2 => {
                text(entry.get("rule")).zip(text(entry.get("not")).map(Some))
            }
            entry => text(Some(entry)).map(|rule| (rule, None)),
        };
        let (text, not) =
            found.ok_or_else(|| format!("{id}: neither a rule nor {{ rule, not }}"))?;
        Ok(Self { id, text, not })
    }
}

/// Where a section belongs: "A.10 Ten" comes after "A.9 Nine".
fn place(section: &str) -> Vec<(u32, &str)> {
    let label = section.split(' ').next().unwrap_or_default();
    label.split('.').map(|part| (part.parse().unwrap_or(u32::MAX), part)).collect()
}

/// What holds Atoll to a rule, for a table.
fn cell(not: Option<&str>, tests: Option<&Tests>) -> String {
    let not = not.map(|why| format!("not: {}", escaped(why)));
    let tests = tests.into_iter().flatten().map(|(file, names)| {
        let names: Vec<_> = names.iter().map(|name| escaped(name)).collect();
        format!("`{}`: {}", file.display(), names.join(", "))
    });
    not.into_iter().chain(tests).collect::<Vec<_>>().join("<br>")
}

/// `text` for a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

impl Coverage {
    /// Reads every test below the repository's `root`.
    ///
    /// # Errors
    /// When a line with ids is not above a test.
    pub(crate) fn scan(root: &Path) -> Result<Self, String> {
        let mut coverage = Self::default();
        let mut directories: Vec<_> = TESTS.iter().map(|directory| root.join(directory)).collect();
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
                let (path, name) = (entry.path(), entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    if !FOREIGN.iter().any(|foreign| name == *foreign) {
                        directories.push(path);
                    }
                } else if path
                    .extension()
                    .is_some_and(|kind| kind == "rs" || kind == "py" || kind == "ts")
                {
                    let source = fs::read_to_string(&path).unwrap();
                    coverage.add(path.strip_prefix(root).unwrap(), &source)?;
                }
            }
        }
        Ok(coverage)
    }

    /// Adds what the tests of one file name.
    fn add(&mut self, file: &Path, source: &str) -> Result<(), String> {
        for (number, line) in source.lines().enumerate() {
            let line = line.trim_start();
            let Some(ids) = MARKS.iter().find_map(|mark| line.strip_prefix(mark)) else { continue };
            let name = source.lines().skip(number + 1).find_map(test_name);
            let place = || format!("{}:{}: no test below", file.display(), number + 1);
            let name = name.ok_or_else(place)?;
            for id in ids.split(',') {
                let tests = self.0.entry(id.trim().to_owned()).or_default();
                let names = tests.entry(file.to_owned()).or_default();
                if names.last() != Some(&name) {
                    names.push(name.clone());
                }
            }
        }
        Ok(())
    }
}

/// The name of the test that a line begins, in Rust, Python or TypeScript.
fn test_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    let line = line.strip_prefix("async ").unwrap_or(line);
    for keyword in ["fn ", "def "] {
        if let Some(rest) = line.strip_prefix(keyword) {
            return rest.split('(').next().map(str::to_owned);
        }
    }
    // `test('...'`; with arguments of its own, `test.each(...)('...'`, perhaps over several lines.
    let call = match line.strip_prefix("test") {
        Some(rest) if rest.starts_with('.') => rest.split_once(")(").map(|(_, call)| call),
        Some(rest) => rest.strip_prefix('('),
        None => line.strip_prefix("])(").or_else(|| line.strip_prefix(")(")),
    };
    let call = call.filter(|call| call.starts_with(['\'', '"', '`']))?;
    let mark = call.chars().next()?;
    call[1..].split(mark).next().map(|name| format!("\"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "
        ['A.1 One']
        B-2 = 'Second | first.'
        B-1 = { rule = 'Not kept.', not = 'no need' }
    ";

    fn rules() -> Rules {
        Rules::parse(RULES).unwrap()
    }

    /// What `sources`, files with their text, cover.
    fn coverage(sources: &[(&str, &str)]) -> Coverage {
        let mut coverage = Coverage::default();
        for (file, source) in sources {
            coverage.add(Path::new(file), source).unwrap();
        }
        coverage
    }

    #[test]
    fn a_rule_has_a_test_or_a_reason() {
        assert_eq!(rules().problems(&coverage(&[])), ["B-2: no test, and no reason why not"]);
        let covered = coverage(&[("a.rs", "// Rules: B-2\n#[test]\nfn two() {}\n")]);
        assert_eq!(rules().problems(&covered), [""; 0]);
    }

    #[test]
    fn a_test_names_rules_that_there_are() {
        let covered = coverage(&[("a.py", "# Rules: B-2, B-3,\ndef test_two() -> None:\n")]);
        let problems = rules().problems(&covered);
        assert_eq!(
            problems,
            ["\"\": no such rule, but a.py names it", "\"B-3\": no such rule, but a.py names it"]
        );
        assert!(Coverage::default().add(Path::new("a.py"), "x = 1\n# Rules: B-2\n").is_err());
    }

    #[test]
    fn an_id_is_given_once() {
        let twice = Rules::parse("[A]\nB-1 = { rule = 'x', not = 'y' }\n[C]\nB-1 = 'x'").unwrap();
        let covered = coverage(&[("a.rs", "// Rules: B-1\nfn one() {}\n")]);
        assert_eq!(twice.problems(&covered), ["B-1: there are two rules of this id"]);
    }

    #[test]
    fn what_is_not_a_rule_is_refused() {
        for wrong in [
            "B-1 = 'outside'",
            "[A]\nb-1 = 'x'",
            "[A]\nB1 = 'x'",
            "[A]\nB-x = 'x'",
            "[A]\nB-1 = ''",
            "[A]\nB-1 = { rule = 'x' }",
            "[A]\nB-1 = { rule = 'x', why = 'y' }",
            "[A]\nB-1 = 'x'\nB-1 = 'y'",
        ] {
            assert!(Rules::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sections_are_in_the_order_of_the_contract() {
        let sections = ["E Last", "A.10 Ten", "A.2.10 Later", "A.9 Nine", "A.2.2 Two", "0 First"];
        let text: String = sections.iter().map(|section| format!("['{section}']\n")).collect();
        let rules = Rules::parse(&text).unwrap();
        let order: Vec<_> = rules.0.iter().map(|(section, _)| section.as_str()).collect();
        let expected = ["0 First", "A.2.2 Two", "A.2.10 Later", "A.9 Nine", "A.10 Ten", "E Last"];
        assert_eq!(order, expected);
    }

    #[test]
    fn names_are_found_in_every_language() {
        for (line, name) in [
            ("    async fn two_at_once() {", "two_at_once"),
            ("fn roundtrip(bytes in any::<Vec<u8>>()) {", "roundtrip"),
            ("async def test_both(", "test_both"),
            ("test('a, (b)', async () => {", "\"a, (b)\""),
            ("test.skipIf(before('2.30.1'))('later', async () => {", "\"later\""),
            ("test.skipIf(old)(`later`, async () => {", "\"later\""),
            ("test.each(Object.keys(many))('%s', async (one) => {", "\"%s\""),
            ("])('%s of several lines', async (one) => {", "\"%s of several lines\""),
        ] {
            assert_eq!(test_name(line).as_deref(), Some(name));
        }
        for line in [
            "testing('x')",
            "test.each([",
            "#[test]",
            "@pytest.mark.parametrize('x', [1])",
            "// fn",
        ] {
            assert_eq!(test_name(line), None);
        }
    }

    #[test]
    fn the_table_has_reasons_and_tests() {
        let covered = coverage(&[
            ("a.ts", "// Rules: B-2\ntest('x | y', () => {\n// Rules: B-2\ntest('z', () => {"),
            ("a.rs", "// Rules: B-2\n// Rules: B-2\nfn two() {}\n"),
        ]);
        let markdown = rules().markdown(&covered);
        let (head, table) = markdown.split_once("### A.1 One\n\n").unwrap();
        assert!(head.contains("2 rules, 1 of them with a reason"));
        let expected = "| id | rule | tests |\n|---|---|---|\n\
            | B-2 | Second \\| first. | `a.rs`: two<br>`a.ts`: \"x \\| y\", \"z\" |\n\
            | B-1 | Not kept. | not: no need |\n";
        assert_eq!(table, expected);
    }
}
