//! What root may do inside a sandbox.
//!
//! These capabilities hold in the sandbox's own user namespace only: none reaches the host. Even
//! so, what a program in a sandbox has no use for is dropped, since each is a way into kernel code.
//! Left out on purpose: SYS_ADMIN (mounts), NET_ADMIN (the firewall's view of the slot), NET_RAW
//! (forged packets; ping works through ping sockets), SYS_PTRACE (envd), SYS_MODULE, SYS_RAWIO.

use crate::sys::{self, CapabilitySets, Result, Step};

/// Numbers from the kernel's `linux/capability.h`.
const KEPT: [u32; 12] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP: drop further
    10, // NET_BIND_SERVICE: ports below 1024
    18, // SYS_CHROOT
    29, // AUDIT_WRITE: sudo and login report through it
    31, // SETFCAP
];

/// Drops everything but [`KEPT`], for good: the bounding set goes too.
pub(crate) fn drop_all_but_kept() -> Result<()> {
    let kept = KEPT.iter().fold(0u64, |mask, capability| mask | 1 << capability);
    for capability in 0..64 {
        if kept & 1 << capability != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // Past the last capability this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error).step("drop a capability from the bounding set"),
        }
    }
    sys::set_capabilities(CapabilitySets { effective: kept, permitted: kept, inheritable: 0 })
        .step("drop capabilities")
}
