//! Links, addresses, routes and neighbours, through rtnetlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
    },
};
use tokio::task::JoinHandle;

use crate::{GATEWAY, INNER, NAME_SERVER, cidr::Cidr};

/// MAC of every host end. Locally administered; a pair of its own per slot would tell slots apart.
const HOST_MAC: [u8; 6] = [0x02, 0xa7, 0x01, 0, 0, 1];
/// MAC of every sandbox's `eth0`.
const INNER_MAC: [u8; 6] = [0x02, 0xa7, 0x01, 0, 0, 2];
/// Name of every sandbox's own end.
pub(crate) const INNER_LINK: &str = "eth0";

/// Whether a slot may reach the internet is the *group* of its host end, which firewall rules
/// match: it changes with one netlink message and is gone with the link. The numbers are the same
/// for all instances, so that each knows the others' links too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Group {
    /// May reach the internet.
    Online = 0xa701,
    /// May reach nothing.
    Offline = 0xa702,
}

impl Group {
    pub(crate) fn of(internet: bool) -> Self {
        if internet { Self::Online } else { Self::Offline }
    }
}

/// A netlink connection into one network namespace.
#[derive(Clone)]
pub(crate) struct Links {
    handle: rtnetlink::Handle,
    connection: Arc<Connection>,
}

struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection whose socket is open but that no task serves yet.
pub(crate) struct Opened {
    serve: Pin<Box<dyn Future<Output = ()> + Send>>,
    handle: rtnetlink::Handle,
}

/// Opens a socket in the calling thread's network namespace. Needs an entered runtime.
pub(crate) fn open() -> io::Result<Opened> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    Ok(Opened { serve: Box::pin(connection), handle })
}

impl Opened {
    pub(crate) fn start(self) -> Links {
        Links { handle: self.handle, connection: Arc::new(Connection(tokio::spawn(self.serve))) }
    }
}

impl Links {
    /// Creates a slot's veth pair, the far end in `namespace`. Both ends are down.
    pub(crate) async fn add_pair(&self, name: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INNER_LINK)
            .address(INNER_MAC.to_vec())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        // Without ARP on the host end, its kernel answers no "who has" for the host's addresses.
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, INNER_LINK)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(HOST_MAC.to_vec())
            .link_group(Group::Online as u32)
            .arp(false)
            .build();
        self.done(self.handle.link().add(pair).execute().await, "add the veth pair")
    }

    /// Brings the host end up and routes the outer address to it.
    pub(crate) async fn set_up_host(&self, link: u32, outer: Ipv4Addr) -> io::Result<()> {
        self.up(link).await?;
        let neighbour = self.handle.neighbours().add(link, IpAddr::V4(outer));
        let neighbour = neighbour.link_layer_address(&INNER_MAC).execute().await;
        self.done(neighbour, "add the slot's neighbour entry")?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(outer, 32)
            .output_interface(link)
            .scope(RouteScope::Link)
            .build();
        self.done(self.handle.route().add(route).execute().await, "add the slot's route")
    }

    /// Gives a slot's own side its addresses and its default route.
    pub(crate) async fn set_up_inside(&self) -> io::Result<()> {
        let loopback = self.index("lo").await?;
        let link = self.index(INNER_LINK).await?;
        self.up(loopback).await?;
        for (link, address) in [(loopback, NAME_SERVER), (link, INNER)] {
            let added = self.handle.address().add(link, IpAddr::V4(address), 32).execute().await;
            self.done(added, "add an address")?;
        }
        self.up(link).await?;
        let neighbour = self.handle.neighbours().add(link, IpAddr::V4(GATEWAY));
        let neighbour = neighbour.link_layer_address(&HOST_MAC).execute().await;
        self.done(neighbour, "add the gateway's neighbour entry")?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(link)
            .gateway(GATEWAY)
            .onlink()
            .pref_source(INNER)
            .build();
        self.done(self.handle.route().add(route).execute().await, "add the default route")
    }

    /// Moves a link to another group.
    pub(crate) async fn set_group(&self, link: u32, group: Group) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(link).link_group(group as u32).build();
        self.done(self.handle.link().set(message).execute().await, "set the link's group")
    }

    /// Deletes a link and waits until it is gone. One that is gone already is fine.
    pub(crate) async fn delete(&self, link: u32) -> io::Result<()> {
        match self.handle.link().del(link).execute().await {
            Err(error) if is_no_device(&error) => Ok(()),
            other => self.done(other, "delete the link"),
        }
    }

    /// The index of the link called `name`; `NotFound` when there is none.
    pub(crate) async fn index(&self, name: &str) -> io::Result<u32> {
        self.find(name).await.map(|message| message.header.index)
    }

    /// The index of the link called `name` whose other end is in `namespace`; `NotFound` when there
    /// is none such.
    ///
    /// The kernel's own number for the far namespace decides: whoever is in there may name and
    /// number links as they like.
    pub(crate) async fn index_into(&self, name: &str, namespace: &OwnedFd) -> io::Result<u32> {
        let link = self.find(name).await?;
        let far = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkNetNsId(id) => Some(*id),
            _ => None,
        });
        let own = self.number_of(namespace.as_fd()).await?;
        if far.is_none() || far != own {
            let message = format!("the link {name} leads into another namespace");
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        Ok(link.header.index)
    }

    /// The number that this connection's namespace has for another one, if it has given it one.
    async fn number_of(&self, namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let descriptor = u32::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
        let mut query = NsidMessage::default();
        query.attributes.push(NsidAttribute::Fd(descriptor));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(query));
        request.header.flags = NLM_F_REQUEST;
        let answer = match self.handle.clone().request(request) {
            Ok(mut answers) => answers.next().await.map(|answer| answer.payload),
            Err(error) => self.done(Err(error), "number a namespace")?,
        };
        match answer {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer))) => {
                let id = answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(*id),
                    _ => None,
                });
                Ok(id.filter(|id| *id >= 0))
            }
            Some(NetlinkPayload::Error(error)) => {
                self.done(Err(rtnetlink::Error::NetlinkError(error)), "number a namespace")
            }
            _ => Err(io::Error::other("number a namespace: no answer")),
        }
    }

    async fn find(&self, name: &str) -> io::Result<LinkMessage> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let found = match found.try_next().await {
            Err(error) if is_no_device(&error) => None,
            other => self.done(other, "look for a link")?,
        };
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no link {name}"));
        found.ok_or_else(missing)
    }

    /// Name and index of every link whose name starts with `prefix`.
    pub(crate) async fn with_prefix(&self, prefix: &str) -> io::Result<Vec<(String, u32)>> {
        let all: Result<Vec<LinkMessage>, _> =
            self.handle.link().get().execute().try_collect().await;
        let named = self.done(all, "list links")?.into_iter().filter_map(|message| {
            let index = message.header.index;
            message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some((name, index)),
                _ => None,
            })
        });
        Ok(named.filter(|(name, _)| name.starts_with(prefix)).collect())
    }

    /// What the host routes, over all of its tables.
    pub(crate) async fn routes(&self) -> io::Result<Routes> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Result<Vec<RouteMessage>, _> =
            self.handle.route().get(request).execute().try_collect().await;
        let mut routes = Routes::default();
        for route in self.done(all, "list routes")? {
            routes.add(&route);
        }
        Ok(routes)
    }

    async fn up(&self, link: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(link).up().build();
        self.done(self.handle.link().set(message).execute().await, "bring a link up")
    }

    /// A request whose connection ended looks like one that succeeded: tell them apart.
    fn done<T>(&self, result: Result<T, rtnetlink::Error>, what: &str) -> io::Result<T> {
        match result {
            Err(rtnetlink::Error::NetlinkError(error)) => {
                let error = error.to_io();
                Err(io::Error::new(error.kind(), format!("{what}: {error}")))
            }
            Err(error) => Err(io::Error::other(format!("{what}: {error}"))),
            Ok(_) if self.connection.0.is_finished() => {
                Err(io::Error::other(format!("{what}: the netlink connection ended")))
            }
            Ok(value) => Ok(value),
        }
    }
}

fn is_no_device(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error)
        if error.raw_code().abs() == Errno::ENODEV as i32)
}

/// The part of the host's IPv4 routes that matters here.
#[derive(Default, Debug)]
pub(crate) struct Routes {
    /// Destinations and the links that lead there, default routes left out.
    pub(crate) destinations: Vec<(Cidr, Option<u32>)>,
    /// Links that default routes lead out by, each once.
    pub(crate) uplinks: Vec<u32>,
}

impl Routes {
    fn add(&mut self, route: &RouteMessage) {
        let length = route.header.destination_prefix_length;
        let link = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(link) => Some(*link),
            _ => None,
        });
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(first))
                    if (1..=32).contains(&length) =>
                {
                    self.destinations.push((Cidr::around(*first, length), link));
                }
                RouteAttribute::Oif(link) if length == 0 => self.add_uplink(*link),
                RouteAttribute::MultiPath(hops) if length == 0 => {
                    hops.iter().for_each(|hop| self.add_uplink(hop.interface_index));
                }
                _ => {}
            }
        }
    }

    fn add_uplink(&mut self, link: u32) {
        if !self.uplinks.contains(&link) {
            self.uplinks.push(link);
        }
    }
}
