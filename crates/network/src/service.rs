//! The service: configuration, start, shutdown.

use std::{collections::HashSet, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use atoll_core::{Error, InstanceId, Result, error::codes};

use crate::{
    IDS_PER_SLOT,
    addresses::{Kept, MOST_SLOTS, Outer},
    cidr::Cidr,
    dns,
    firewall::Firewall,
    links::{self, Links, Routes},
    maker::Maker,
    names::Names,
    netns::Worker,
    pool::{Handle, Pool, remove_links},
};

/// How long dying namespaces may take at shutdown before their links are deleted one by one.
const PATIENCE: Duration = Duration::from_millis(500);

/// Configuration of the network service.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose slots these are: six hexadecimal characters, part of every name on the host.
    pub instance: InstanceId,
    /// The `atoll-launcher` program.
    pub launcher: PathBuf,
    /// First of the host ids that sandboxes get, [`IDS_PER_SLOT`] for each.
    pub first_uid: u32,
    /// Most slots at once, 65,534 at most.
    pub slots: u32,
    /// Slots to keep ready.
    pub pool: usize,
    /// Outer addresses; none means a free block of 10.0.0.0/8.
    pub network: Option<Cidr>,
    /// Name servers that sandboxes' queries go to; empty means those of `/etc/resolv.conf`.
    pub dns: Vec<SocketAddr>,
    /// Destinations to block beyond the private, local and metadata ranges.
    pub deny: Vec<Cidr>,
    /// Indexes of slots that sandboxes of an earlier run still live in: their links, addresses and
    /// ways out stay untouched, for [`Handle::adopt`]. One that is not there is kept from others all
    /// the same, until [`Handle::discard`].
    pub keep: HashSet<u32>,
}

impl Options {
    fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(codes::BAD_OPTION, message));
        if !(1..=MOST_SLOTS).contains(&self.slots) {
            return bad(format!("{} network slots: the range is 1 to {MOST_SLOTS}.", self.slots));
        }
        let fits = self
            .slots
            .checked_mul(IDS_PER_SLOT)
            .and_then(|ids| self.first_uid.checked_add(ids))
            .is_some();
        if self.first_uid < IDS_PER_SLOT || !fits {
            let Self { first_uid, slots, .. } = self;
            return bad(format!(
                "Host ids from {first_uid} for {slots} slots leave the range {IDS_PER_SLOT} to {}.",
                u32::MAX
            ));
        }
        match self.keep.iter().find(|index| **index >= self.slots) {
            Some(index) => {
                bad(format!("Network slot {index} is in use, so {} slots are too few.", self.slots))
            }
            None => Ok(()),
        }
    }
}

/// The running service. Dropping it without [`Service::shutdown`] leaves all in place, as a crash
/// would; the next start of the instance cleans up.
pub struct Service {
    names: Names,
    host: Links,
    firewall: Firewall,
    handle: Handle,
}

impl Service {
    /// Removes what an earlier run of this instance left and nobody lives in, sets the firewall and
    /// begins to fill the pool. Must run in the host's network namespace.
    ///
    /// # Errors
    /// `BAD_OPTION`, `NO_ADDRESSES`, `FIREWALL_FAILED`, `TOOL_MISSING` without `nft`,
    /// `PRIVILEGE_MISSING` without root.
    pub async fn start(options: Options) -> Result<Self> {
        options.check()?;
        let names = Names::new(&options.instance)?;
        let host = links::open().map_err(|error| failed("open netlink", &error))?.start();
        let kept = remove_links(&host, &names, &options.keep, Duration::ZERO).await?;

        let routes = host.routes().await.map_err(|error| failed("read routes", &error))?;
        let upstreams = Arc::new(dns::Upstreams::new(options.dns));
        let (kept, mut used) = sort(&routes, &kept);
        // A slot's address must not hide a name server that lies behind the default route.
        used.extend(upstreams.servers().iter().filter_map(|server| match server {
            SocketAddr::V4(address) => Some(Cidr::around(*address.ip(), 32)),
            SocketAddr::V6(_) => None,
        }));
        let outer = Outer::choose(options.network, options.slots, &used, &kept, names.seed())?;

        let worker = |name| Worker::start(name).map_err(|error| failed("start a thread", &error));
        let maker = Maker {
            names: names.clone(),
            launcher: options.launcher,
            first_uid: options.first_uid,
            outer,
            host: host.clone(),
            upstreams,
            setup: worker("slot-setup")?,
            dialer: worker("slot-dial")?,
        };
        let (sources, deny) = (outer.sources(&kept), options.deny);
        let firewall = Firewall::install(names.clone(), sources, deny, routes.uplinks).await?;
        let handle = Pool::start(maker, options.slots, options.pool, options.keep);
        let network = outer.network();
        tracing::info!(%network, slots = options.slots, kept = kept.len(), "sandbox network is up");
        Ok(Self { names, host, firewall, handle })
    }

    /// A handle for others.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops, and removes everything this instance has on the host: slots that are still held lose
    /// their links. Only slots that live on, because they were left or not adopted yet, stay as they
    /// are, and the firewall with them.
    ///
    /// # Errors
    /// When the kernel or `nft` refuse to remove something.
    pub async fn shutdown(self) -> Result<()> {
        let left = self.handle.stop().await?;
        // Links before rules: there is no moment without a firewall.
        let stay = remove_links(&self.host, &self.names, &left, PATIENCE).await?;
        if stay.is_empty() {
            return self.firewall.remove().await;
        }
        tracing::info!(slots = stay.len(), "the network of sandboxes that live on stays");
        self.firewall.leave().await;
        Ok(())
    }
}

/// Sorts the host's routes into those of kept slots, whose links these are, and all others.
fn sort(routes: &Routes, kept: &[(u32, u32)]) -> (Vec<Kept>, Vec<Cidr>) {
    let (mut addresses, mut used) = (Vec::new(), Vec::new());
    for (destination, by) in &routes.destinations {
        match kept.iter().find(|(_, link)| Some(*link) == *by) {
            Some((index, _)) => addresses.push((*index, destination.first())),
            None => used.push(*destination),
        }
    }
    (addresses, used)
}

fn failed(what: &str, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => codes::PRIVILEGE_MISSING,
        _ => codes::SLOT_FAILED,
    };
    Error::new(code, format!("Network start, {what}: {error}."))
}
