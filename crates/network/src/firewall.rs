//! The host's side of isolation: one nft table per instance, and forwarding on the uplinks.
//!
//! The table is set once in a run and never changes, and a guard puts it back when someone flushes
//! the whole ruleset, as a reload of the host's own firewall does. While the table of an earlier run
//! is replaced, a second one stands in for it, so sandboxes that outlived that run are guarded at
//! every moment. It matches links by their name's prefix, and what may differ between slots is the link's group (see
//! [`Group`]). Forwarding is switched per link, never for the whole host. Where it was off on an
//! uplink the host was no router, and must not become one for others on that network: the table then
//! drops what enters there for anyone but sandboxes.
//!
//! Which uplinks Atoll switched is kept in the table itself, in its set `uplinks`. So it survives a
//! crash, and two instances on a host know of each other: the last one to stop switches back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use atoll_core::{Error, Result, addresses::NOT_PUBLIC, error::codes};
use nix::net::if_::if_indextoname;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    cidr::Cidr,
    links::Group,
    names::{Names, TABLE_PREFIX},
    nft, sysctl,
};

/// Seconds that a silent TCP connection of a sandbox stays in the host's connection table, which
/// does not notice when the sandbox goes. The kernel's default is five days; two hours is when
/// keepalives start. It goes with the table: a connection that outlives a run of Atoll falls back to
/// the default.
const LONGEST_SILENCE: u32 = 7200;
/// Seconds for which the host remembers a TCP connection of a sandbox that has been closed. The
/// kernel's 120 would let one sandbox fill the table with connections that it opens and closes.
const LINGER: u32 = 10;

/// How often the guard looks whether the table is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The installed table. Dropping it ends the guard and leaves the table.
pub(crate) struct Firewall {
    names: Names,
    guard: JoinHandle<()>,
    /// The guard ends when this is dropped.
    guarding: oneshot::Sender<()>,
}

impl Firewall {
    /// Replaces this instance's table, with no moment without one, then switches forwarding on for
    /// `uplinks` (link indexes). `sources` are the outer addresses of its slots.
    pub(crate) async fn install(
        names: Names,
        sources: Vec<Cidr>,
        deny: Vec<Cidr>,
        uplinks: Vec<u32>,
    ) -> Result<Self> {
        let result = spawn_blocking({
            let names = names.clone();
            move || install(&names, &sources, &deny, &uplinks)
        });
        let script = blocking(result.await)?;
        let (guarding, end) = oneshot::channel();
        let guard = tokio::spawn(guard(names.table(), script.into(), end));
        Ok(Self { names, guard, guarding })
    }

    /// Undoes [`Firewall::install`]. The instance's links must be gone.
    pub(crate) async fn remove(self) -> Result<()> {
        let names = self.leave().await;
        blocking(spawn_blocking(move || remove(&names)).await)
    }

    /// Ends the guard; everything else stays as it is, for slots that live on.
    pub(crate) async fn leave(self) -> Names {
        let Self { names, guard, guarding } = self;
        // Not aborted but awaited: a check under way could put the table back after its removal.
        drop(guarding);
        if let Err(error) = guard.await {
            tracing::error!(%error, "the firewall's guard has failed");
        }
        names
    }
}

/// Puts the table back whenever it is gone, until `end`'s sender is.
async fn guard(table: String, script: Arc<str>, mut end: oneshot::Receiver<()>) {
    while timeout(LOOK_AGAIN, &mut end).await.is_err() {
        let (name, script) = (table.clone(), Arc::clone(&script));
        if let Err(error) = blocking(spawn_blocking(move || restore(&name, &script)).await) {
            tracing::error!(%error, table, "cannot make sure that the firewall is in place");
        }
    }
}

fn restore(table: &str, script: &str) -> Result<()> {
    if nft::has_table(table).map_err(nft_failed)? {
        return Ok(());
    }
    tracing::error!(table, "someone has removed the firewall of the sandboxes: restoring it");
    nft::apply(script).map_err(nft_failed)
}

fn blocking<T>(result: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| Err(failed(&io::Error::other(error))))
}

fn failed(error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => codes::PRIVILEGE_MISSING,
        _ => codes::FIREWALL_FAILED,
    };
    Error::new(code, format!("The firewall: {error}."))
}

fn nft_failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(codes::TOOL_MISSING, "The program `nft` is not installed.")
        }
        _ => failed(&error),
    }
}

/// Returns the script that sets the table.
fn install(names: &Names, sources: &[Cidr], deny: &[Cidr], uplinks: &[u32]) -> Result<String> {
    let switched_before: BTreeSet<String> = switched_uplinks()?.into_values().flatten().collect();
    let mut switched = Vec::new();
    let mut off = Vec::new();
    for index in uplinks {
        let name = link_name(*index).map_err(|error| failed(&error))?;
        let is_off = !sysctl::is_on(forwarding(&name)).map_err(|error| failed(&error))?;
        if is_off || switched_before.contains(&name) {
            switched.push(name.clone());
        }
        if is_off {
            off.push(name);
        }
    }
    // The table first: nothing may pass unguarded in between.
    let table = |name: &str| table(name, names, sources, deny, &switched);
    let script = table(&names.table());
    replace(names, &table(&names.second_table()), &script).map_err(nft_failed)?;
    off.iter()
        .try_for_each(|name| sysctl::write(forwarding(name), "1"))
        .map_err(|error| failed(&error))?;
    Ok(script)
}

/// Sets the table by `script`, with a second one in force meanwhile. A transaction is atomic, but not
/// to a packet on its way: that may pass the new table just before the change, when it is empty yet,
/// and the old one just after, when it is empty already.
fn replace(names: &Names, second: &str, script: &str) -> io::Result<()> {
    nft::apply(second)?;
    nft::apply(script)?;
    nft::apply(&deletion(&names.second_table()))
}

/// Deletes a table, there or not.
fn deletion(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

fn remove(names: &Names) -> Result<()> {
    let mut switched = switched_uplinks()?;
    let ours = switched.remove(&names.table()).unwrap_or_default();
    let others: BTreeSet<String> = switched.into_values().flatten().collect();
    for name in ours.difference(&others) {
        match sysctl::write(forwarding(name), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
            // Done, or the link itself is gone.
            _ => {}
        }
    }
    nft::apply(&deletion(&names.table())).map_err(nft_failed)
}

fn link_name(index: u32) -> io::Result<String> {
    let name = if_indextoname(index)?.to_string_lossy().into_owned();
    if is_plain(&name) {
        Ok(name)
    } else {
        Err(io::Error::other(format!("the link name {name:?} cannot be used with nft")))
    }
}

fn forwarding(link: &str) -> PathBuf {
    sysctl::of_link("ipv4", link, "forwarding")
}

/// nft text has no escapes: a link may be called almost anything, and `*` would match others.
fn is_plain(link: &str) -> bool {
    link.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b':'))
}

/// For each Atoll table on this host, the uplinks that Atoll switched.
fn switched_uplinks() -> Result<BTreeMap<String, BTreeSet<String>>> {
    Ok(parse_uplinks(&nft::list_sets().map_err(nft_failed)?))
}

fn parse_uplinks(listing: &serde_json::Value) -> BTreeMap<String, BTreeSet<String>> {
    let sets = listing["nftables"].as_array().into_iter().flatten().map(|entry| &entry["set"]);
    let mut tables = BTreeMap::new();
    for set in sets.filter(|set| set["name"] == "uplinks") {
        let Some(table) = set["table"].as_str().filter(|name| name.starts_with(TABLE_PREFIX))
        else {
            continue;
        };
        let links = set["elem"].as_array().into_iter().flatten().filter_map(|link| link.as_str());
        tables.insert(table.to_owned(), links.map(str::to_owned).collect());
    }
    tables
}

/// The whole table, as one transaction that also removes an earlier one of that name.
fn table(name: &str, names: &Names, sources: &[Cidr], deny: &[Cidr], uplinks: &[String]) -> String {
    let ours = format!("\"{}*\"", names.link_prefix());
    let groups = format!("{{ {}, {} }}", Group::Online as u32, Group::Offline as u32);
    let online = Group::Online as u32;
    let reject = "reject with icmpx admin-prohibited";
    // What no sandbox reaches, wherever it is.
    let not_public = NOT_PUBLIC.map(|(first, length)| Cidr::around(first, length));
    let blocked = elements(not_public.iter().chain(sources).chain(deny));
    let sources = elements(sources);
    let deletion = deletion(name);
    let uplinks = match uplinks {
        [] => String::new(),
        some => format!("elements = {{ \"{}\" }}", some.join("\", \"")),
    };
    format!(
        r#"{deletion}table inet {name} {{
  set uplinks {{ type ifname; {uplinks} }}
  set blocked {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {blocked} }} }}
  set sources {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {sources} }} }}
  ct timeout flows {{ protocol tcp; l3proto ip; policy = {{ established: {LONGEST_SILENCE}, time_wait: {LINGER} }}; }}

  # A source is real when the route back to it leads to where it came from. Not left to rp_filter,
  # which distributions loosen as links appear.
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {ours} meta nfproto ipv6 drop
    iifname {ours} fib saddr . iif oif missing drop
  }}

  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname {ours} {reject}
  }}

  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    oifname {ours} jump to_sandbox
    iifname {ours} jump from_sandbox
    # The host was no router on these links: still let nothing new pass that no one asked for.
    iifname @uplinks oifgroup != {groups} ct state != {{ established, related }} ct status & dnat == 0 drop
  }}

  chain from_sandbox {{
    ct state invalid drop
    iifgroup != {online} {reject}
    oifgroup {groups} {reject}
    ip daddr @blocked {reject}
    ct state new meta l4proto tcp ct timeout set "flows"
    accept
  }}

  chain to_sandbox {{
    iifgroup {groups} {reject}
    oifgroup {online} ct state {{ established, related }} accept
    drop
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @sources oifname != {ours} masquerade
  }}
}}
"#
    )
}

fn elements<'a>(networks: impl IntoIterator<Item = &'a Cidr>) -> String {
    let texts: Vec<String> = networks.into_iter().map(Cidr::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switched_uplinks_are_read_from_atoll_tables_only() {
        let listing = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "inet", "name": "uplinks", "table": "atoll_00000a", "elem": ["eth0", "wg0"]}},
            {"set": {"family": "inet", "name": "uplinks", "table": "atoll_00000b"}},
            {"set": {"family": "inet", "name": "blocked", "table": "atoll_00000a", "elem": ["eth1"]}},
            {"set": {"family": "inet", "name": "uplinks", "table": "other", "elem": ["eth2"]}},
        ]});
        let expected = BTreeMap::from([
            ("atoll_00000a".to_owned(), BTreeSet::from(["eth0".to_owned(), "wg0".to_owned()])),
            ("atoll_00000b".to_owned(), BTreeSet::new()),
        ]);
        assert_eq!(parse_uplinks(&listing), expected);
    }

    #[test]
    fn link_names_cannot_carry_nft_syntax() {
        assert!(["eth0", "eth0.100", "br-lan", "wg_0", "eth0:1"].into_iter().all(is_plain));
        assert!(!["eth*", "a\"b", "a;b", "a{b", "é"].into_iter().any(is_plain));
    }
}
