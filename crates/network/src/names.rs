//! Names of what an instance makes on the host.
//!
//! Cleaning up goes by name, so names of two instances must never match each other's patterns:
//! hence the strict form of an instance id here.

use atoll_core::{Error, InstanceId, Result, error::codes};

/// Names of one instance's links and table.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    instance: String,
}

/// Start of every instance's table name.
pub(crate) const TABLE_PREFIX: &str = "atoll_";

impl Names {
    pub(crate) fn new(instance: &InstanceId) -> Result<Self> {
        let id = instance.as_str();
        let hexadecimal = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != 6 || !id.bytes().all(hexadecimal) {
            return Err(Error::new(
                codes::BAD_OPTION,
                format!("The instance id {id:?} is not six hexadecimal characters."),
            ));
        }
        Ok(Self { instance: id.to_owned() })
    }

    /// What the names of all links of this instance start with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("a{}n", self.instance)
    }

    /// The host end of slot `index`: at most 15 bytes, the kernel's limit, as an index has at most
    /// five digits.
    pub(crate) fn link(&self, index: u32) -> String {
        format!("a{}n{index}", self.instance)
    }

    /// The slot whose host end is called `link`, if it is one of this instance.
    pub(crate) fn slot_of(&self, link: &str) -> Option<u32> {
        let index = link.strip_prefix(&self.link_prefix())?.parse().ok()?;
        // Only in the form that we give: "+1" and "01" are numbers too.
        (self.link(index) == link).then_some(index)
    }

    /// The nft table.
    pub(crate) fn table(&self) -> String {
        format!("{TABLE_PREFIX}{}", self.instance)
    }

    /// A table that is there while [`Names::table`] is replaced. It is in no list of Atoll's tables.
    pub(crate) fn second_table(&self) -> String {
        format!("replacing_{TABLE_PREFIX}{}", self.instance)
    }

    /// A number that differs between instances, to spread their address ranges.
    pub(crate) fn seed(&self) -> u32 {
        u32::from_str_radix(&self.instance, 16).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_others_are_refused() {
        let names = Names::new(&"0a1b2c".parse().unwrap()).unwrap();
        assert_eq!(names.link(65_535), "a0a1b2cn65535");
        assert!(names.link(u32::from(u16::MAX)).len() <= 15);
        assert_eq!(names.slot_of("a0a1b2cn65535"), Some(65_535));
        for other in ["a0a1b2cn01", "a0a1b2cn+1", "a0a1b2cn", "a0a1b2dn1", "eth0"] {
            assert_eq!(names.slot_of(other), None);
        }
        for bad in ["abc", "0a1b2cn", "0a1b2n", "0000001"] {
            assert_eq!(Names::new(&bad.parse().unwrap()).unwrap_err().code, codes::BAD_OPTION);
        }
    }
}
