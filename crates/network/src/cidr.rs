//! An IPv4 network in CIDR notation.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 network such as `10.0.0.0/8`. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cidr {
    first: Ipv4Addr,
    length: u8,
}

/// Text or numbers that are no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 10.0.0.0/8")]
pub struct InvalidCidr(String);

impl Cidr {
    /// The network of `length` bits that starts at `first`.
    ///
    /// # Errors
    /// When `length` is above 32 or `first` has bits behind it.
    pub fn new(first: Ipv4Addr, length: u8) -> Result<Self, InvalidCidr> {
        if length > 32 || first.to_bits() & !mask(length) != 0 {
            return Err(InvalidCidr(format!("{first}/{length}")));
        }
        Ok(Self { first, length })
    }

    /// The network of `length` bits (at most 32) around `address`.
    pub(crate) const fn around(address: Ipv4Addr, length: u8) -> Self {
        Self { first: Ipv4Addr::from_bits(address.to_bits() & mask(length)), length }
    }

    /// The lowest address.
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// How many leading bits are fixed.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether all of `other` lies in this network.
    pub fn contains(self, other: Self) -> bool {
        self.length <= other.length && Self::around(other.first, self.length) == self
    }

    /// Whether the networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

const fn mask(length: u8) -> u32 {
    match length {
        0 => 0,
        bits => u32::MAX << (32 - bits),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    /// Parses `10.0.0.0/8`, or a bare address as a network of one.
    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (first, length) = text.split_once('/').unwrap_or((text, "32"));
        let first = first.parse().map_err(|_| invalid())?;
        let length = length.parse().map_err(|_| invalid())?;
        Self::new(first, length).map_err(|_| invalid())
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
    fn only_networks_parse() {
        assert_eq!(cidr("192.0.0.192"), cidr("192.0.0.192/32"));
        assert_eq!(cidr("0.0.0.0/0").to_string(), "0.0.0.0/0");
        for bad in ["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0/8", "::/0", "10.0.0.0/", "a/8"] {
            assert_eq!(bad.parse::<Cidr>(), Err(InvalidCidr(bad.to_owned())));
        }
    }

    #[test]
    fn containment() {
        assert!(cidr("10.0.0.0/8").contains(cidr("10.255.0.0/16")));
        assert!(!cidr("10.255.0.0/16").contains(cidr("10.0.0.0/8")));
        assert!(cidr("0.0.0.0/0").contains(cidr("255.255.255.255")));
        assert!(!cidr("10.0.0.0/9").overlaps(cidr("10.128.0.0/9")));
        assert!(cidr("10.255.0.0/16").overlaps(cidr("10.0.0.0/8")));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(bits: u32, length in 0u8..=32) {
            let network = Cidr::around(Ipv4Addr::from_bits(bits), length);
            prop_assert_eq!(network.to_string().parse::<Cidr>().unwrap(), network);
        }
    }
}
