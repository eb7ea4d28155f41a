//! Children whose number becomes known only after their fork. Alone in its program: it reaps
//! whatever children there are.

// The reaper waits for them.
#![allow(clippy::unwrap_used, clippy::zombie_processes)]

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use atoll_envd::reaper::{Exit, Reaper};
use rustix::process::{Pid, test_kill_process};

#[tokio::test]
async fn an_end_is_told_whether_it_came_before_or_after_the_question() {
    let reaper = Reaper::default();
    let asking = async {
        let early = Command::new("/bin/sh").args(["-c", "exit 5"]).spawn().unwrap();
        let early = Pid::from_child(&early);
        while test_kill_process(early).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (_, end) = reaper.adopt(early);
        assert_eq!(end.await.unwrap(), Exit::Code(5));

        let script = ["-c", "read line; exit 6"];
        let mut late = Command::new("/bin/sh").args(script).stdin(Stdio::piped()).spawn().unwrap();
        let (_, end) = reaper.adopt(Pid::from_child(&late));
        late.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert_eq!(end.await.unwrap(), Exit::Code(6));
    };
    tokio::select! {
        result = reaper.run() => panic!("the reaper stopped: {result:?}"),
        () = asking => {}
    }
}
