//! How the end of a process is told to clients.

use atoll_wire::rpc::process::process_event::EndEvent;

use crate::reaper::Exit;

/// Signals by name, from 1, in the words that clients compare with.
const SIGNALS: [&str; 15] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
];

/// The end event of a process: any end but exit code 0 is also an error.
pub fn end_event(exit: Exit) -> EndEvent {
    let (exit_code, exited, status) = match exit {
        Exit::Code(code) => (code, true, format!("exit status {code}")),
        Exit::Signal { number, core_dumped } => {
            let core = if core_dumped { " (core dumped)" } else { "" };
            (-1, false, format!("signal: {}{core}", signal_name(number)))
        }
    };
    let error = (exit != Exit::Code(0)).then(|| status.clone());
    EndEvent { exit_code, exited, status, error, ..EndEvent::default() }
}

fn signal_name(number: i32) -> String {
    let known = usize::try_from(number - 1).ok().and_then(|index| SIGNALS.get(index));
    known.map_or_else(|| format!("signal {number}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: PROC-35
    #[test]
    fn success_is_not_an_error() {
        let end = end_event(Exit::Code(0));
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (0, true, "exit status 0"));
        assert_eq!(end.error, None);
    }

    // Rules: PROC-36
    #[test]
    fn a_failure_says_its_code_twice() {
        let end = end_event(Exit::Code(3));
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
    }

    // Rules: PROC-37, PROC-38
    #[test]
    fn signals_have_the_names_clients_know() {
        let end = |number, core_dumped| end_event(Exit::Signal { number, core_dumped });
        let killed = end(libc::SIGKILL, false);
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(killed.error.as_deref(), Some("signal: killed"));
        assert_eq!(end(libc::SIGHUP, false).status, "signal: hangup");
        assert_eq!(end(libc::SIGTERM, false).status, "signal: terminated");
        assert_eq!(end(libc::SIGSEGV, true).status, "signal: segmentation fault (core dumped)");
        assert_eq!(end(34, false).status, "signal: signal 34");
    }
}
