//! What the system says of processes (proc(5)). All of it may have changed by the time it is read; of one
//! that has ended, nothing is said.

use std::fs;

use rustix::process::{Pid, Signal};

/// A process, as `stat` describes it.
#[derive(Debug)]
pub(crate) struct Stat {
    pid: i32,
    state: char,
    parent: i32,
    group: i32,
    pub(crate) flags: u64,
    /// When it was started, in ticks of the system's clock.
    started: u64,
}

/// One of a process group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) identity: Identity,
    /// Whether the leader of the group has started it.
    pub(crate) is_child: bool,
    /// What it does with a signal. What a fork that has not become another program yet inherited, does
    /// not count as a handler.
    pub(crate) handles: bool,
    pub(crate) ignores: bool,
}

/// What tells a process from a later one of the same number: that, and when it was started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Identity(i32, u64);

impl Stat {
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let stat = read(pid, "stat");
        // The name, which comes before, is in brackets and may have some itself.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let process = |index: usize| fields.get(index)?.parse().ok();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: process(1)?,
            group: process(2)?,
            flags: number(6)?,
            started: number(19)?,
        })
    }

    /// Sets of signals of `status`, as one.
    pub(crate) fn signals(&self, sets: &[&str]) -> u64 {
        let status = read(self.pid, "status");
        let sets = status.lines().filter_map(|line| {
            let set = sets.iter().find_map(|set| line.strip_prefix(set))?;
            u64::from_str_radix(set.trim(), 16).ok()
        });
        sets.fold(0, |all, set| all | set)
    }

    /// As a member of the group of a leader that was started with a command, if it is one.
    fn member(&self, leader: i32, command: &str, signal: Signal) -> Option<Member> {
        if self.group != leader || matches!(self.state, 'Z' | 'X') {
            return None;
        }
        let has = |sets| self.signals(sets) & bit(signal) != 0;
        // Looked at first: a program that is seen now has lost the handlers of what it was. While it
        // becomes that, it has no arguments.
        let now = read(self.pid, "cmdline");
        let is_fork = now.is_empty() || now == command;
        Some(Member {
            identity: Identity(self.pid, self.started),
            is_child: self.parent == leader,
            // Some block a signal, and wait for it.
            handles: !is_fork && has(&["SigCgt:", "SigBlk:"]),
            ignores: has(&["SigIgn:"]),
        })
    }
}

/// The program and arguments of a process, as they are there.
pub(crate) fn command(pid: i32) -> String {
    read(pid, "cmdline")
}

/// All of the group of a leader that was started with a [`command`], and what they do with a signal.
pub(crate) fn group(leader: Pid, command: &str, signal: Signal) -> Vec<Member> {
    let leader = leader.as_raw_nonzero().get();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|pid| Stat::read(pid)?.member(leader, command, signal)).collect()
}

/// A signal in a set of signals.
pub(crate) fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

/// A file of a process, which may have any bytes in it; nothing, if there is none.
fn read(pid: i32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
