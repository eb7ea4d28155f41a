//! `slot UID`: an empty user and network namespace for the pool.
//!
//! The namespaces are made under a host id of their own, because kernel limits such as inotify's
//! instances count against the id that created a user namespace: sandboxes must not share it. The
//! daemon maps the ids and opens both namespaces while this process holds them, then closes its
//! standard input.

use std::io::{self, Read, Write};

use crate::sys::{self, Failure, Result, Step};

pub(crate) fn hold(uid: &str) -> Result<()> {
    let uid: u32 = uid.parse().map_err(|error| Failure::new("parse the uid", error))?;
    if uid == 0 {
        return Err(Failure::new("parse the uid", "it must not be root"));
    }
    // Capabilities are kept so that hosts which deny user namespaces to plain users do not deny
    // this one.
    sys::keep_capabilities().step("keep capabilities")?;
    sys::become_id(uid).step("become the slot's id")?;
    let mut sets = sys::capabilities().step("read capabilities")?;
    sets.effective = sets.permitted;
    sys::set_capabilities(sets).step("restore capabilities")?;
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET).step("create the namespaces")?;

    let mut stdout = io::stdout().lock();
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).step("report readiness")?;
    io::stdin().lock().read_to_end(&mut Vec::new()).step("wait for the daemon")?;
    Ok(())
}
