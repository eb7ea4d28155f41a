//! Which addresses slots use between their own NAT and the host's.

use std::net::Ipv4Addr;

use atoll_core::{Error, Result, error::codes};

use crate::cidr::Cidr;

/// Where to look when the operator names no network.
const PRIVATE: Cidr = Cidr::around(Ipv4Addr::new(10, 0, 0, 0), 8);
/// Most slots of one instance: outer addresses of a /16 less its first and last.
pub(crate) const MOST_SLOTS: u32 = (1 << 16) - 2;

/// A slot of an earlier run that is still in use: its index and its outer address.
pub(crate) type Kept = (u32, Ipv4Addr);

/// The instance's outer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    network: Cidr,
}

impl Outer {
    /// `given`, or a free block of 10.0.0.0/8 of just the size for `slots`: that of the `kept`
    /// slots if it can be. `used` are the host's routes without its default ones and those to kept
    /// slots, and what else must stay reachable. `seed` spreads instances, whose blocks show in the
    /// routes only while they have slots.
    pub(crate) fn choose(
        given: Option<Cidr>,
        slots: u32,
        used: &[Cidr],
        kept: &[Kept],
        seed: u32,
    ) -> Result<Self> {
        let bits = (slots + 2).next_power_of_two().trailing_zeros();
        let length = 32 - u8::try_from(bits).unwrap_or(32);
        let fail = |message: String| Err(Error::new(codes::NO_ADDRESSES, message));
        if let Some(network) = given {
            if network.length() > length {
                return fail(format!("{network} is too small for {slots} sandboxes."));
            }
            // A wider route around it does no harm: a slot's own is more specific.
            let chosen = Self { network };
            if let Some(route) = used.iter().find(|route| network.contains(**route)) {
                return fail(format!("{network} contains {route}, which this host uses."));
            }
            return match kept.iter().find(|slot| chosen.clashes(**slot)) {
                Some((_, address)) => fail(format!(
                    "{network} contains {address}, which a sandbox that runs has in another place."
                )),
                None => Ok(chosen),
            };
        }
        let blocks = 1u32 << (length - PRIVATE.length());
        // A prime stride by the seed, so that neighbouring ids land far apart.
        let start = seed.wrapping_mul(40_503) % blocks;
        let as_before = kept.iter().filter_map(|(index, address)| {
            let first = address.to_bits().checked_sub(index + 1)?;
            Cidr::new(Ipv4Addr::from_bits(first), length).ok()
        });
        let others = (0..blocks)
            .map(|step| (start + step) % blocks)
            .map(|block| PRIVATE.first().to_bits() + (block << bits))
            .map(|first| Cidr::around(Ipv4Addr::from_bits(first), length));
        let free = as_before
            .filter(|network| PRIVATE.contains(*network))
            .chain(others)
            .filter(|network| !used.iter().any(|route| route.overlaps(*network)))
            .map(|network| Self { network })
            .find(|chosen| !kept.iter().any(|slot| chosen.clashes(*slot)));
        free.map_or_else(
            || fail(format!("No block of {PRIVATE} is free for {slots} sandboxes.")),
            Ok,
        )
    }

    /// Whether a kept slot's address would be another slot's here.
    fn clashes(self, (index, address): Kept) -> bool {
        self.network.contains(Cidr::around(address, 32))
            && address.to_bits() - self.network.first().to_bits() != index + 1
    }

    /// All source addresses of this instance's slots: the network, and beside it those of kept ones
    /// that were made when the network was another.
    pub(crate) fn sources(self, kept: &[Kept]) -> Vec<Cidr> {
        let beside = kept.iter().map(|(_, address)| Cidr::around(*address, 32));
        let beside = beside.filter(|address| !self.network.contains(*address));
        [self.network].into_iter().chain(beside).collect()
    }

    /// All of them.
    pub(crate) fn network(self) -> Cidr {
        self.network
    }

    /// The address of slot `index`.
    pub(crate) fn of_slot(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.first().to_bits() + 1 + index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_given_network_must_be_large_enough_and_not_hide_a_route() {
        let choose =
            |given, slots, used: &[Cidr]| Outer::choose(Some(cidr(given)), slots, used, &[], 0);
        assert_eq!(choose("172.20.0.0/24", 254, &[]).unwrap().network(), cidr("172.20.0.0/24"));
        for (given, slots, used) in
            [("172.20.0.0/24", 255, "10.0.0.0/8"), ("172.20.0.0/24", 9, "172.20.0.7/32")]
        {
            let error = choose(given, slots, &[cidr(used)]).unwrap_err();
            assert_eq!(error.code, codes::NO_ADDRESSES);
            assert!(error.message.contains(given), "{error}");
        }
        assert!(choose("172.20.0.0/24", 9, &[cidr("172.16.0.0/12")]).is_ok());
    }

    #[test]
    fn a_host_that_routes_all_of_ten_has_no_free_block() {
        let error = Outer::choose(None, 1, &[cidr("10.0.0.0/8")], &[], 3).unwrap_err();
        assert_eq!(error.code, codes::NO_ADDRESSES);
    }

    #[test]
    fn kept_slots_stay_where_they_are() {
        let before = Outer::choose(None, 100, &[], &[], 7).unwrap();
        let kept = [(3, before.of_slot(3)), (90, before.of_slot(90))];
        // Whatever the seed, and even though another instance came to be meanwhile.
        let again = Outer::choose(None, 100, &[cidr("10.0.0.0/24")], &kept, 8).unwrap();
        assert_eq!(again, before);
        assert_eq!(again.sources(&kept), [before.network()]);

        // A network of another place or size: new slots go there, kept ones keep their addresses.
        for other in [
            Outer::choose(Some(cidr("172.20.0.0/24")), 100, &[], &kept, 7).unwrap(),
            Outer::choose(None, 100, &[before.network()], &kept, 7).unwrap(),
        ] {
            assert!(!other.network().overlaps(before.network()));
            let expected = kept.map(|(_, address)| Cidr::around(address, 32));
            assert_eq!(other.sources(&kept)[1..], expected);
        }

        let shifted = [(4, before.of_slot(3))];
        let error = Outer::choose(Some(before.network()), 100, &[], &shifted, 7).unwrap_err();
        assert_eq!(error.code, codes::NO_ADDRESSES);
        let elsewhere = Outer::choose(None, 100, &[], &shifted, 7).unwrap();
        assert_ne!(elsewhere.network(), before.network());
    }

    proptest! {
        #[test]
        fn a_chosen_block_is_free_and_holds_every_slot(
            slots in 1..=MOST_SLOTS,
            seed in 0u32..1 << 24,
            used in prop::collection::vec((any::<u32>(), 9u8..=32), 0..8),
        ) {
            let used: Vec<Cidr> = used
                .into_iter()
                .map(|(bits, length)| Cidr::around(Ipv4Addr::from_bits(10 << 24 | bits >> 8), length))
                .collect();
            if let Ok(outer) = Outer::choose(None, slots, &used, &[], seed) {
                prop_assert!(outer.network().length() >= 16);
                prop_assert!(used.iter().all(|route| !route.overlaps(outer.network())));
                for index in [0, slots - 1] {
                    prop_assert!(outer.network().contains(Cidr::around(outer.of_slot(index), 32)));
                }
                prop_assert_ne!(outer.of_slot(0), outer.network().first());
            }
        }
    }
}
