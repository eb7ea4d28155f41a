//! The interrupts of a cell.
//!
//! One can be lost on a shell: a program that is being started when it comes has its signals still as the
//! shell's, and the shell itself heeds an interrupt only if the program that it waits for was ended by it.
//! It may even give up a cell, and then wait for such a program with the next one. So an interrupt is sent
//! again until the cell has ended; at a terminal, one presses the keys again. But who handles interrupts
//! gets it once, and what the shell does after that is not interrupted.

use std::{future::pending, time::Duration};

use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use crate::kernel::{
    process::Process,
    stat::{Identity, Member},
};

/// How long after an interrupt the next is due; after each, twice as long.
const FIRST: Duration = Duration::from_millis(20);

/// How many more there are at most: the last after some ten seconds.
const LIMIT: u32 = 9;

/// Those that a cell has got, and is still to get.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    sent: usize,
    /// Who had a handler for the last.
    handled: Vec<Identity>,
    next: Option<Next>,
}

#[derive(Debug)]
struct Next {
    at: Instant,
    number: u32,
}

impl Interrupts {
    /// Sends the first one to a shell that was started with a command, and all that it runs.
    pub(super) fn send(&mut self, shell: &Process, command: &str) {
        self.signal(shell, &shell.group(command, Signal::INT));
        self.next = Some(Next { at: Instant::now() + FIRST, number: 1 });
    }

    /// It is time for another.
    pub(super) fn repeat(&mut self, shell: &Process, command: &str) {
        let group = shell.group(command, Signal::INT);
        let is_there = |identity| group.iter().any(|member| member.identity == identity);
        if !self.handled.iter().all(|&identity| is_there(identity)) {
            // It has done what it does, and the shell goes on as with any command that has ended.
            self.stop();
            return;
        }
        self.next = self.next.take().filter(|last| last.number < LIMIT).map(|last| Next {
            at: Instant::now() + FIRST * 2_u32.pow(last.number),
            number: last.number + 1,
        });
        if self.handled.is_empty() {
            self.signal(shell, &group);
        }
    }

    fn signal(&mut self, shell: &Process, group: &[Member]) {
        let handle = group.iter().filter(|member| member.handles);
        self.handled = handle.map(|member| member.identity).collect();
        self.sent += 1;
        shell.signal_group(Signal::INT);
    }

    /// There are to be no more.
    pub(super) fn stop(&mut self) {
        self.next = None;
    }

    /// How many there were.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Whether a program has missed the one that ended the cell, and is to have another. What runs in the
    /// background ignores them.
    pub(super) fn are_missed(&self, shell: &Process, command: &str) -> bool {
        let misses = |member: &Member| {
            member.is_child && !member.ignores && !self.handled.contains(&member.identity)
        };
        self.next.is_some() && shell.group(command, Signal::INT).iter().any(misses)
    }

    /// Waits until the next is due; forever, if there is none. Can be dropped and called anew.
    pub(super) async fn due(&self) {
        match &self.next {
            Some(next) => sleep_until(next.at).await,
            None => pending().await,
        }
    }
}
