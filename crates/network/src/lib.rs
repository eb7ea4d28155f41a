//! Networks of sandboxes: slots, firewall, DNS, and how the node reaches into them.
//!
//! A **slot** is what one sandbox plugs into: a user namespace and a network namespace that it
//! owns, with a veth pair to the host. Slots are made ahead of time into a pool, used once, and
//! torn down by closing the namespace.
//!
//! ```text
//!  host                                     slot (the same in every sandbox)
//!  uplink ── masquerade ── a<instance>n<i> ════ eth0 169.254.0.21
//!            firewall      /32 route           snat to the outer address
//!                          to the outer        169.254.0.22:53 on lo: DNS, served by the daemon
//! ```
//!
//! From inside, all slots look alike; what tells one from another, the **outer address**, exists
//! only between the slot's source NAT and the host's masquerade. A sandbox reaches the internet
//! and nothing else: not the host, not other sandboxes, not private networks, not IPv6. The host
//! never routes to a sandbox either: [`Slot::connect`] opens its socket *inside*.
//!
//! All this is the kernel's, apart from the name server. So a sandbox does not notice when the daemon
//! dies: the next run is told which slots to keep ([`Options::keep`]), changes nothing about them,
//! and takes each up again ([`Handle::adopt`]).
//!
//! - `pool`: the actor that keeps slots ready; [`Handle`] talks to it.
//! - `maker`, `launcher`, `links`: how one slot comes to be. `slot`: what it can do.
//! - `firewall`, `nft`, `sysctl`: the host's rules and switches, and how they are undone.
//! - `netns`: the thread that does jobs inside other namespaces.
//! - `dns`: the resolver that slots see. `cidr`, `addresses`: address arithmetic.

mod addresses;
mod cidr;
mod dns;
mod firewall;
mod launcher;
mod links;
mod maker;
mod names;
mod netns;
mod nft;
mod pool;
mod service;
mod slot;
mod sysctl;

pub use cidr::{Cidr, InvalidCidr};
pub use pool::Handle;
pub use service::{Options, Service};
pub use slot::Slot;

use std::net::Ipv4Addr;

/// Address of every sandbox's `eth0`.
pub const INNER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// Where every sandbox finds its name server: an address of its own loopback, so that queries
/// never touch the link.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Next hop of every sandbox's default route. No one answers there: it only has a neighbour entry.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 23);
/// Ids in a slot's user namespace, and so the distance between the host ids of two slots.
pub const IDS_PER_SLOT: u32 = 65_536;
