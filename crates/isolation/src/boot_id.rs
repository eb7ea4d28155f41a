//! What a sandbox takes for the id of its boot: one for each start, which a checkpoint keeps.

/// Where it finds it.
pub(crate) const PATH: &str = "/proc/sys/kernel/random/boot_id";

/// A new one, as the kernel writes it: a random UUID and the end of the line.
pub(crate) fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    // Version 4, and the variant of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = format!("{:032x}", u128::from_be_bytes(bytes));
    let [a, b, c, d, e] =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default());
    Ok(format!("{a}-{b}-{c}-{d}-{e}\n"))
}

/// Whether it has that form.
pub(crate) fn is_one(text: &str) -> bool {
    text.len() == 37
        && text.strip_suffix('\n').is_some_and(|id| {
            id.bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_digit() || byte.is_ascii_lowercase())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_look_like_the_kernels_and_differ() {
        let host = std::fs::read_to_string(PATH).unwrap();
        let ids = [0; 100].map(|_| generate().unwrap());
        for id in ids.iter().chain([&host]) {
            assert!(is_one(id), "{id:?}");
            let dashes: Vec<usize> = id.match_indices('-').map(|(at, _)| at).collect();
            assert_eq!((dashes, &id[14..15]), (vec![8, 13, 18, 23], "4"), "{id:?}");
            assert!("89ab".contains(&id[19..20]), "{id:?}");
        }
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        for bad in ["", "\n", &host[..36], &host.replace('-', "/"), &format!("{host}\n")] {
            assert!(!is_one(bad), "{bad:?}");
        }
    }
}
