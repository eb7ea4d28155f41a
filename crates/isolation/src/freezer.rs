//! Stopping all processes of a group, and letting them go on.
//!
//! v2 has this in every group, v1 in a hierarchy of its own. They differ in what becomes of a process
//! that is killed while it is stopped: with v2 it ends, with v1 only once it is let go on.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use crate::{cgroup::field, hierarchies::Controller};

/// Processes stop when they next return from the kernel. One that takes this long there is not to
/// hold up the rest, which are stopped already.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

impl Controller {
    /// Stops them and waits for that. On failure they go on.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        let frozen = self.set_frozen(true).and_then(|()| self.await_frozen());
        if frozen.is_err() {
            // It fails for the same cause, when the group is gone; then there is nobody to let go.
            let _ = self.thaw();
        }
        frozen
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.set_frozen(false)
    }

    /// Whether one of the threads in a part of a frozen group of v2 waits for a child of its own in
    /// vfork(2): it shares that one's memory until there is another program in it. Such a thread counts
    /// as frozen where it is, in the kernel, and is the only one to be uninterruptible.
    pub(crate) fn is_in_fork(&self, parts: &[&str]) -> bool {
        let waits = |thread: &str| {
            let stat = fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'))
        };
        parts.iter().any(|part| {
            let threads = fs::read_to_string(self.part(part).directory.join("cgroup.threads"));
            threads.unwrap_or_default().lines().any(waits)
        })
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        if self.unified {
            self.set("cgroup.freeze", u8::from(frozen))
        } else {
            self.set("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        }
    }

    fn is_frozen(&self) -> io::Result<bool> {
        let read = |file: &str| fs::read_to_string(self.directory.join(file));
        if self.unified {
            Ok(field(&read("cgroup.events")?, "frozen") == 1)
        } else {
            Ok(read("freezer.state")?.trim() == "FROZEN")
        }
    }

    /// v1 tells nobody when it is done, so this asks again and again.
    fn await_frozen(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_frozen()? {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        time::Duration,
    };

    use atoll_core::InstanceId;
    use rustix::pipe::{PipeFlags, pipe_with};

    use crate::{Running, cgroup::Cgroups, hierarchies::Hierarchies};

    const DEADLINE: Duration = Duration::from_secs(30);

    /// The host's hierarchies without v2, on hosts that have v1 for all that is needed.
    fn v1() -> Option<Hierarchies> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let v1: Vec<&str> = table.lines().filter(|line| !line.contains(" - cgroup2 ")).collect();
        let found = Hierarchies::from_table(&v1.join("\n"), &|_| String::new()).ok()?;
        found.freezer.is_some().then_some(found)
    }

    #[tokio::test]
    async fn what_v1_has_frozen_ends_when_it_is_killed() {
        let Some(hierarchies) = v1() else { return };
        let instance = InstanceId::generate().unwrap();
        let cgroups = Cgroups::open_in(hierarchies, &instance).unwrap();
        let cgroup = cgroups.create("frozen").unwrap();
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        for file in cgroup.join_files() {
            std::fs::write(file, child.id().to_string()).unwrap();
        }
        let (log, _end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let running = Running::new(child.id(), cgroup, log).unwrap();

        running.cgroup.freeze().unwrap();
        let frozen = running.cgroup.freezer().unwrap().is_frozen();
        running.process.kill().unwrap();
        let lives = !running.process.has_ended().unwrap();
        running.kill().unwrap();
        let ended = tokio::time::timeout(DEADLINE, running.process.ended()).await;
        // Whatever becomes of the test, nothing is to stay frozen.
        running.cgroup.thaw().unwrap();
        child.wait().unwrap();
        running.cgroup.remove().await.unwrap();
        cgroups.remove();
        assert!(frozen.unwrap() && lives && ended.is_ok());
        assert!(cgroups.existing().is_empty());
    }
}
