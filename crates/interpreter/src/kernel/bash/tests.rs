use rustix::process::Signal;

use super::*;
use crate::kernel::{
    Stream::{Stderr, Stdout},
    soon, until,
};

struct Shell {
    bash: Bash,
    _directory: tempfile::TempDir,
}

/// What a cell did: events, with neighbouring text of one stream put together.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    count: Option<u64>,
    printed: Vec<(Stream, String)>,
    failure: Option<String>,
}

impl Seen {
    fn stdout(&self) -> &str {
        match self.printed.as_slice() {
            [] => "",
            [(Stdout, text)] => text,
            other => panic!("printed {other:?}"),
        }
    }

    fn stderr(&self) -> String {
        self.printed
            .iter()
            .filter(|(stream, _)| *stream == Stderr)
            .map(|(_, text)| &**text)
            .collect()
    }
}

impl Shell {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let launch = Launch { cwd: directory.path().into(), dir: directory.path().into() };
        Self { bash: soon(Bash::start(&launch)).await.unwrap(), _directory: directory }
    }

    async fn begin(&mut self, code: &str) {
        self.bash.begin(code, false).await.unwrap();
        assert!(matches!(self.next().await.unwrap(), Event::Started(_)));
    }

    async fn next(&mut self) -> Result<Event, Died> {
        soon(self.bash.next()).await
    }

    async fn follow(&mut self, seen: Seen) -> Result<Seen, Died> {
        soon(self.see(seen)).await
    }

    async fn see(&mut self, mut seen: Seen) -> Result<Seen, Died> {
        loop {
            match self.bash.next().await? {
                Event::Started(count) => seen.count = Some(count),
                Event::Printed { stream, text, .. } => match seen.printed.last_mut() {
                    Some((last, before)) if *last == stream => before.push_str(&text),
                    _ => seen.printed.push((stream, text)),
                },
                Event::Failed(failure) => {
                    assert_eq!(failure.name, "ExitCode");
                    assert!(failure.traceback.ends_with(&failure.value), "{failure:?}");
                    seen.failure = Some(failure.value);
                }
                Event::Shown { .. } => panic!("Bash shows nothing"),
                Event::Done => return Ok(seen),
            }
        }
    }

    async fn run(&mut self, code: &str) -> Seen {
        self.bash.begin(code, false).await.unwrap();
        self.follow(Seen::default()).await.unwrap()
    }

    /// What a cell prints on standard output, if that is all it does.
    async fn print(&mut self, code: &str) -> String {
        let seen = self.run(code).await;
        assert_eq!(seen.failure, None, "{code}: {seen:?}");
        seen.stdout().to_owned()
    }

    async fn hidden(&mut self, code: &str) -> Seen {
        self.bash.begin(code, true).await.unwrap();
        self.follow(Seen::default()).await.unwrap()
    }

    /// Waits until a cell has printed this.
    async fn until(&mut self, wanted: &str) {
        let mut text = String::new();
        while !text.contains(wanted) {
            if let Event::Printed { text: more, .. } = self.next().await.unwrap() {
                text += &more;
            }
        }
    }
}

#[tokio::test]
async fn state_stays_from_cell_to_cell() {
    let mut shell = Shell::start().await;
    let seen = shell.run("echo Hello, World!").await;
    assert_eq!((seen.count, seen.stdout()), (Some(1), "Hello, World!\n"));
    let cells = [
        ("x='a  b'; f() { echo \"f $x\"; }; export Y=1; cd /; alias ll='echo aliased'; set -f", ""),
        ("f; pwd; printenv Y; ll; echo *", "f a  b\n/\n1\naliased\n*\n"),
        ("(exit 3) || true; false || echo $?", "1\n"),
        ("cat <<END\n$x it's\nEND", "a  b it's\n"),
        ("for i in 1 2; do\n  echo $i # one\ndone", "1\n2\n"),
        ("# nothing", ""),
        ("", ""),
        ("echo '!x' \"a!b\"", "!x a!b\n"),
        ("read line; echo \"[$line] $?\"; cat; echo end", "[] 1\nend\n"),
        ("printf 'no newline'", "no newline"),
        ("echo $LINENO >/dev/null; history | wc -l", "0\n"),
    ];
    for (code, printed) in cells {
        assert_eq!(shell.print(code).await, printed, "{code}");
    }
    assert_eq!(shell.run("echo 1").await.count, Some(13));
}

#[tokio::test]
async fn failures_say_their_exit_code_and_the_shell_lives_on() {
    let mut shell = Shell::start().await;
    shell.run("x=1").await;
    let cells = [
        ("echo a; (exit 7)", "7", ""),
        ("ls /no/such", "2", "No such file"),
        ("no-such-command", "127", "command not found"),
        ("if true; then\nfi", "2", "syntax error near unexpected token `fi'"),
        ("echo 'open", "2", "unexpected EOF"),
        ("set -u; echo $nope; echo after", "1", "unbound variable"),
        ("set +u; bash -c 'kill -TERM $$'", "143", ""),
    ];
    for (code, status, said) in cells {
        let seen = shell.run(code).await;
        assert_eq!(seen.failure.as_deref(), Some(status), "{code}");
        assert!(seen.stderr().contains(said), "{code}: {seen:?}");
    }
    assert_eq!(shell.print("echo $x").await, "1\n");
    shell.bash.begin("echo a\0b", false).await.unwrap();
    assert_eq!(shell.next().await.unwrap(), Event::Started(10));
    let Event::Failed(failure) = shell.next().await.unwrap() else { panic!("no failure") };
    assert_eq!(failure.name, "SyntaxError");
    assert_eq!(shell.next().await.unwrap(), Event::Done);
    assert_eq!(shell.print("echo $x").await, "1\n");
}

#[tokio::test]
async fn text_is_told_whole_and_as_it_comes() {
    let mut shell = Shell::start().await;
    shell.begin("echo first; read <gate; echo second; echo error >&2").await;
    shell.bash.interrupt().await;
    shell.follow(Seen::default()).await.unwrap();
    shell.print("mkfifo gate").await;
    shell
        .begin(
            "echo first; read <gate; printf '\\xe2'; sleep 0.05; printf '\\x82\\xac \\xff|\\xc3'",
        )
        .await;
    shell.until("first\n").await;
    // It waits there: the line came before the cell had ended.
    std::fs::write(shell._directory.path().join("gate"), "\n").unwrap();
    let seen = shell.follow(Seen::default()).await.unwrap();
    assert_eq!(seen.stdout(), "\u{20ac} \u{fffd}|\u{fffd}");
    let seen = shell.run("echo out; echo error >&2; exec 1>&2; echo moved").await;
    assert_eq!(seen.stderr(), "error\nmoved\n");
}

#[tokio::test]
async fn much_output_arrives_before_the_end() {
    let mut shell = Shell::start().await;
    shell
        .bash
        .begin("yes 0123456789abcde | head -c 100000000; echo; echo end", false)
        .await
        .unwrap();
    let (mut length, mut last) = (0, String::new());
    loop {
        match shell.next().await.unwrap() {
            Event::Printed { text, .. } => {
                length += text.len();
                last.push_str(&text);
                last.drain(..last.len().saturating_sub(5));
            }
            Event::Done => break,
            Event::Started(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(length, 100_000_005);
    assert_eq!(last, "\nend\n");
}

/// Whether there is a process of this name in the group.
fn is_running(name: &str, group: rustix::process::Pid) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else { return false };
        let in_group = rest.split_whitespace().nth(2) == Some(&group.as_raw_nonzero().to_string());
        in_group && head.ends_with(&format!("({name}"))
    })
}

#[tokio::test]
async fn an_interrupt_ends_the_cell_and_nothing_else() {
    let mut shell = Shell::start().await;
    shell.run("x=kept").await;
    for code in [
        "echo on; sleep 300; echo NO",
        "echo on; while true; do :; done; echo NO",
        "g() { echo on; while :; do sleep 0.01; done; }; g; echo NO",
        "echo on; (sleep 300; echo NO); echo NO",
        "echo on; y=$(sleep 300); echo NO",
        "sleep 300 | sh -c 'echo on; cat'; echo NO",
    ] {
        shell.begin(code).await;
        shell.until("on\n").await;
        // A subshell that is just being forked takes the interrupt for itself.
        if code.contains("sleep 300") {
            let group = shell.bash.process().pid();
            until(|| is_running("sleep", group)).await;
        }
        shell.bash.interrupt().await;
        let seen = shell.follow(Seen::default()).await.unwrap();
        assert_eq!(seen.failure.as_deref(), Some("130"), "{code}");
        assert!(seen.printed.iter().all(|(_, text)| !text.contains("NO")), "{seen:?}");
        assert_eq!(seen.stderr(), "", "{code}");
        // One that comes too late does nothing to the next cell.
        shell.bash.interrupt().await;
        shell.bash.process().signal_group(Signal::INT);
        assert_eq!(shell.run("echo $x").await.printed.last().unwrap().1, "kept\n", "{code}");
    }
}

#[tokio::test]
async fn no_interrupt_is_lost_on_a_program_that_is_just_being_started_or_just_ends() {
    let mut shell = Shell::start().await;
    for (code, rounds) in [
        ("echo on; sleep 300", 100),
        ("echo on; while :; do sleep 0.001; done", 100),
        // It has a handler of its own, a while after it was started.
        ("echo on; perl -e '$SIG{INT} = sub { exit 3 }; sleep 300'", 100),
    ] {
        for _ in 0..rounds {
            shell.begin(code).await;
            shell.until("on\n").await;
            shell.bash.interrupt().await;
            let seen = shell.follow(Seen::default()).await.unwrap();
            assert_ne!(seen.failure, None, "{code}");
            assert_eq!(shell.print("echo next").await, "next\n");
        }
    }
}

#[tokio::test]
async fn who_handles_an_interrupt_gets_it_once() {
    let script = "trap 'echo handled; sleep 0.5; echo cleaned; end=now' INT; echo on
        until [ \"$end\" ]; do sleep 0.01; done";
    for code in ["sh script", "bash script", "exec sh script", script] {
        let mut shell = Shell::start().await;
        std::fs::write(shell._directory.path().join("script"), script).unwrap();
        // The shell goes on, as at a terminal, and nothing that it does then is interrupted.
        shell.begin(&format!("{code}; sleep 0.5; echo saved")).await;
        shell.until("on\n").await;
        shell.bash.interrupt().await;
        let seen = shell.follow(Seen::default()).await.unwrap();
        let saved = if code.starts_with("exec") { "" } else { "saved\n" };
        assert_eq!(seen.stdout(), format!("handled\ncleaned\n{saved}"), "{code}: {seen:?}");
    }
}

#[tokio::test]
async fn a_cell_that_ends_the_shell_ends_as_a_script_does() {
    for (code, status, said) in [
        ("echo last; exit", None, ""),
        ("echo last; echo error >&2; exit 3", Some("3"), "error\n"),
        ("echo last; echo exit >&2; (exit 4); exit", Some("4"), "exit\n"),
        ("echo last; { sleep 300 & } 2>/dev/null; exit 5", Some("5"), ""),
        ("trap 'echo last' EXIT; exit 6", Some("6"), ""),
        ("set -euo pipefail; echo last; false | true; echo NO", Some("1"), ""),
        ("exec 2>&1; exec echo last", None, ""),
        ("echo last; exec sh -c 'printf error >&2; exit 7'", Some("7"), "error"),
        ("echo last; exec sh -c 'exec >&- 2>&- <&-; exit 8'", Some("8"), ""),
    ] {
        let mut shell = Shell::start().await;
        let seen = shell.run(code).await;
        assert_eq!(seen.failure.as_deref(), status, "{code}");
        let lines: Vec<_> = seen.printed.iter().filter(|(stream, _)| *stream == Stdout).collect();
        assert_eq!(lines, [&(Stdout, "last\n".to_owned())], "{code}");
        assert_eq!(seen.stderr(), said, "{code}");
        assert!(shell.bash.begin("echo", false).await.is_err());
    }
}

#[tokio::test]
async fn its_death_is_told_after_what_it_said() {
    for (code, hidden, how) in [
        ("echo last; echo exit >&2; sleep 300 & kill -KILL $$", false, "was killed (signal 9)"),
        ("exit 3", true, "ended with exit code 3"),
    ] {
        let mut shell = Shell::start().await;
        shell.bash.begin(code, hidden).await.unwrap();
        let mut printed = [String::new(), String::new()];
        let died = loop {
            match shell.next().await {
                Ok(Event::Printed { stream, text, .. }) => {
                    printed[usize::from(stream == Stderr)] += &text;
                }
                Ok(Event::Started(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(died) => break died,
            }
        };
        if !hidden {
            assert_eq!(printed[0], "last\n");
            assert!(printed[1].contains("exit\n"), "{printed:?}");
        }
        assert!(died.0.contains(how), "{code}: {died}");
        assert!(shell.bash.begin("echo", false).await.is_err());
    }
}

#[tokio::test]
async fn prompts_that_a_cell_sets_are_not_printed() {
    let mut shell = Shell::start().await;
    for code in [
        "PS0='(zero) '; PS1='(one) '; PS2='(two) '; PS4='(four) '",
        "echo line",
        "PS1='(one) '; false",
        "for i in 1; do\n  echo 'over\nlines'; done",
        "echo on; PS1='(one) '; kill -INT $$; echo NO",
        "echo line",
    ] {
        let seen = shell.run(code).await;
        assert!(!seen.stderr().contains('('), "{code}: {seen:?}");
    }
}

#[tokio::test]
async fn hidden_cells_leave_no_trace_but_what_they_did() {
    let mut shell = Shell::start().await;
    assert_eq!(shell.hidden("export A=1; echo no; echo no >&2").await, Seen::default());
    assert_eq!(shell.hidden("(exit 4)").await.failure.as_deref(), Some("4"));
    shell.run("set -x").await;
    assert_eq!(shell.hidden("export B=2").await, Seen::default());
    let seen = shell.run("echo $A $B").await;
    assert_eq!(seen.stderr(), "++ echo 1 2\n");
    assert_eq!(seen.count, Some(2));
    shell.run("set +x").await;
    assert_eq!(shell.run("echo quiet").await.stdout(), "quiet\n");
}

#[tokio::test]
async fn what_runs_in_the_background_neither_holds_a_cell_nor_hangs() {
    let mut shell = Shell::start().await;
    shell.print("mkfifo gate").await;
    shell.run("{ read <gate; echo later; yes | head -c 5000000; echo done >finished; } &").await;
    std::fs::write(shell._directory.path().join("gate"), "\n").unwrap();
    // More than the pipe holds: it is read although no cell runs.
    until(|| shell._directory.path().join("finished").exists()).await;
    let seen = shell.run("echo now").await;
    let text: String = seen.printed.iter().map(|(_, text)| text.as_str()).collect();
    assert!(text.starts_with("later\ny\n") && text.contains("now\n"), "{}", text.len());
    assert!(text.contains("bytes of output between cells are left out]"));
    assert!(text.len() < 2_000_000, "{}", text.len());
}

#[tokio::test]
async fn a_cell_cannot_take_away_what_the_next_one_needs() {
    let mut shell = Shell::start().await;
    for code in [
        "PROMPT_COMMAND=; unset PROMPT_COMMAND; false",
        "PROMPT_COMMAND='echo NO'; false",
        "exec >&-; false",
        "exec 2>&- <&-; false",
    ] {
        assert_eq!(shell.run(code).await.failure.as_deref(), Some("1"), "{code}");
        let seen = shell.run("echo out; echo err >&2; (exit 3)").await;
        assert_eq!(seen.failure.as_deref(), Some("3"), "{code}");
        for said in [(Stdout, "out\n"), (Stderr, "err\n")] {
            assert!(seen.printed.contains(&(said.0, said.1.to_owned())), "{code}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn what_is_said_before_a_hidden_cell_begins_is_kept_in_bounds() {
    let mut shell = Shell::start().await;
    for _ in 0..10_000 {
        let at = jiff::Timestamp::now();
        shell.bash.attached.keep(Item::Printed { stream: Stdout, text: "x".repeat(1000), at });
    }
    let seen = shell.run("echo now").await;
    let text: String = seen.printed.iter().map(|(_, text)| text.as_str()).collect();
    assert!(text.starts_with("xxx") && text.ends_with("now\n"), "{}", text.len());
    assert!(text.contains("bytes of output between cells are left out]"), "{}", text.len());
    assert!(text.len() < 100_000, "{}", text.len());
}
