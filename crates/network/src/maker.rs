//! Makes one slot, or takes up one that an earlier run of Atoll made.
//!
//! Everything a slot has hangs on its network namespace: dropping the descriptors at any point of
//! the way undoes what was made so far, the link on the host included.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use atoll_core::{Error, Result, error::codes};
use tokio::{runtime, task::spawn_blocking};

use crate::{
    IDS_PER_SLOT,
    addresses::Outer,
    dns,
    launcher::{self, Namespaces},
    links::{self, Group, INNER_LINK, Links},
    names::Names,
    netns::Worker,
    nft,
    slot::Parts,
    sysctl,
};

/// Flows of one sandbox to the outside at once. Each takes an entry in the host's connection table
/// too, which has 262,144 by default: without a limit a port scan would fill it for everyone.
const MOST_FLOWS: u32 = 4096;

/// What slots are made from.
pub(crate) struct Maker {
    pub(crate) names: Names,
    pub(crate) launcher: PathBuf,
    /// Host id of slot 0's root.
    pub(crate) first_uid: u32,
    pub(crate) outer: Outer,
    pub(crate) host: Links,
    pub(crate) upstreams: Arc<dns::Upstreams>,
    /// Does what may wait for other work on links.
    pub(crate) setup: Worker,
    /// Opens sockets for [`crate::Slot::connect`], which must not queue behind that.
    pub(crate) dialer: Worker,
}

impl Maker {
    /// Makes slot `index`.
    pub(crate) async fn make(&self, index: u32) -> Result<Parts> {
        self.try_make(index).await.map_err(|error| failed(index, &error))
    }

    /// Takes up slot `index`, whose namespaces a sandbox holds. When it fails, the slot is as it was
    /// but for the way out, which may be what `internet` says already.
    pub(crate) async fn adopt(
        &self,
        index: u32,
        namespaces: Namespaces,
        internet: bool,
    ) -> Result<Parts> {
        self.try_adopt(index, namespaces, internet).await.map_err(|error| failed(index, &error))
    }

    async fn try_make(&self, index: u32) -> io::Result<Parts> {
        let first_uid = self.first_uid(index);
        let outer = self.outer.of_slot(index);
        let Namespaces { user, net } = launcher::make(&self.launcher, first_uid).await?;
        let net = Arc::new(net);
        let runtime = runtime::Handle::current();
        let inside = self.setup.run(&net, move || {
            // The netlink socket registers with the runtime.
            let _entered = runtime.enter();
            prepare_inside(first_uid, outer)?;
            links::open()
        });
        let inside = inside.await?.start();

        let name = self.names.link(index);
        self.host.add_pair(&name, net.as_fd()).await?;
        let link = self.host.index(&name).await?;
        // Before the link is up, or IPv6 would already have an address on it.
        spawn_blocking(move || prepare_host_link(&name)).await.map_err(io::Error::other)??;
        self.host.set_up_host(link, outer).await?;
        inside.set_up_inside().await?;

        let sockets = self.setup.run(&net, dns::open).await?;
        self.assemble(index, user, net, link, true, Some(sockets))
    }

    async fn try_adopt(
        &self,
        index: u32,
        Namespaces { user, net }: Namespaces,
        internet: bool,
    ) -> io::Result<Parts> {
        let link = self.host.index_into(&self.names.link(index), &net).await?;
        self.host.set_group(link, Group::of(internet)).await?;
        let net = Arc::new(net);
        let sockets = match self.setup.run(&net, dns::open).await {
            // While no daemon had the port, the sandbox took it: it then answers itself.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(index, "a sandbox has taken the port of its name server");
                None
            }
            opened => Some(opened?),
        };
        self.assemble(index, user, net, link, internet, sockets)
    }

    fn assemble(
        &self,
        index: u32,
        user_ns: OwnedFd,
        net_ns: Arc<OwnedFd>,
        link: u32,
        internet: bool,
        sockets: Option<dns::Sockets>,
    ) -> io::Result<Parts> {
        let online = Arc::new(AtomicBool::new(internet));
        let serve = |sockets| dns::serve(sockets, Arc::clone(&self.upstreams), Arc::clone(&online));
        let dns = sockets.map(serve).transpose()?;
        Ok(Parts {
            index,
            first_uid: self.first_uid(index),
            user_ns,
            net_ns,
            link,
            host: self.host.clone(),
            dialer: self.dialer.clone(),
            online,
            switching: tokio::sync::Mutex::new(()),
            _dns: dns,
        })
    }

    fn first_uid(&self, index: u32) -> u32 {
        self.first_uid + index * IDS_PER_SLOT
    }
}

fn failed(index: u32, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => codes::PRIVILEGE_MISSING,
        _ => codes::SLOT_FAILED,
    };
    Error::new(code, format!("Network slot {index}: {error}."))
}

/// Runs in the new namespace: switches and rules.
fn prepare_inside(first_uid: u32, outer: Ipv4Addr) -> io::Result<()> {
    // `default` is what eth0 will copy; lo keeps its IPv6, so that ::1 works.
    sysctl::disable_ipv6("default")?;
    // A new namespace copies the host's IPv4 switches, which must not show.
    sysctl::write("/proc/sys/net/ipv4/ip_forward", "0")?;
    // Ping without privilege. The ids are read in the writer's user namespace: ours.
    let last = first_uid + (IDS_PER_SLOT - 1);
    sysctl::write("/proc/sys/net/ipv4/ping_group_range", &format!("{first_uid} {last}"))?;
    nft::apply(&rules(outer))
}

/// Source NAT, and limits on what it makes the kernel remember.
fn rules(outer: Ipv4Addr) -> String {
    format!(
        r#"table ip atoll {{
  # Nothing on loopback is translated, so nothing there needs an entry.
  chain untracked {{
    type filter hook output priority raw; policy accept;
    oifname "lo" notrack
  }}

  chain flows {{
    type filter hook output priority filter; policy accept;
    oifname "{INNER_LINK}" ct state new ct count over {MOST_FLOWS} goto refuse
  }}

  # Programs fail at once instead of waiting for an answer.
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmp admin-prohibited
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{INNER_LINK}" snat to {outer}
  }}
}}
"#
    )
}

/// Runs on the host.
fn prepare_host_link(name: &str) -> io::Result<()> {
    sysctl::disable_ipv6(name)?;
    sysctl::write(sysctl::of_link("ipv4", name, "forwarding"), "1")
}
