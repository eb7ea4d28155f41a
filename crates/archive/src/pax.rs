//! The records that PAX puts before an entry: `LENGTH KEY=VALUE\n`.

use crate::{Entry, Extent, Result, header::has_data, invalid, sparse};

/// Where extended attributes are kept.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// The records before one entry.
pub(crate) type Records = Vec<Record>;

/// Key and value.
type Record = (Vec<u8>, Vec<u8>);

/// Splits what a PAX entry holds.
pub(crate) fn records(mut data: &[u8]) -> Result<Records> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let Some((record, rest)) = split(data) else {
            return invalid("a PAX record is malformed");
        };
        records.push(record);
        data = rest;
    }
    Ok(records)
}

fn split(data: &[u8]) -> Option<(Record, &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = decimal(&data[..space])?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((record[..equals].to_vec(), record[equals + 1..].to_vec()), &data[length..]))
}

/// A number in decimal digits.
pub(crate) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Seconds since 1970, maybe with a fraction, maybe before.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits = fraction.get(..fraction.len().min(9))?;
    let nanoseconds = format!("{digits:0<9}").parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// What the records say instead of the header. The map of a sparse file may begin its data; then
/// this returns true.
pub(crate) fn apply(entry: &mut Entry, records: Records) -> Result<bool> {
    let mut map = sparse::Records::default();
    for (key, value) in records {
        let known = match key.as_slice() {
            b"path" => set(&mut entry.path, value),
            b"linkpath" => set(&mut entry.link, value),
            b"size" => decimal(&value).map(|size| {
                entry.stored = if has_data(entry.kind) { size } else { 0 };
            }),
            b"uid" => decimal(&value).map(|uid| entry.uid = uid),
            b"gid" => decimal(&value).map(|gid| entry.gid = gid),
            b"mtime" => time(&value).map(|modified| entry.modified = modified),
            _ => match key.strip_prefix(ATTRIBUTE) {
                Some(name) => {
                    entry.attributes.push((name.to_vec(), value));
                    Some(())
                }
                None => map.take(&key, &value),
            },
        };
        if known.is_none() {
            return invalid(format!("the PAX record {} is malformed", key.escape_ascii()));
        }
    }
    if let Some(name) = map.name.take() {
        entry.path = name;
    }
    if !map.is_sparse() || !has_data(entry.kind) {
        return Ok(false);
    }
    let in_data = map.in_data;
    entry.sparse = Some((map.size()?, map.extents()?));
    Ok(in_data)
}

/// A name of no bytes is to be taken from the header.
fn set(field: &mut Vec<u8>, value: Vec<u8>) -> Option<()> {
    if !value.is_empty() {
        *field = value;
    }
    Some(())
}

/// Pairs of offset and length.
pub(crate) fn extents(numbers: &[u64]) -> Vec<Extent> {
    numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        let data = b"12 path=a\nb\n30 mtime=1350244992.023960108\n";
        let records = records(data).unwrap();
        assert_eq!(records[0], (b"path".to_vec(), b"a\nb".to_vec()));
        assert_eq!(time(&records[1].1), Some((1_350_244_992, 23_960_108)));
        for bad in [&b"12 path=a\n"[..], b"5 a=b", b"x a=b\n", b"3 \n", b"6 abc\n", b"999 a=b\n"] {
            assert!(super::records(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_may_lie_before_1970() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(time(b"soon"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data: Vec<u8>) {
            let _ = records(&data);
            let _ = time(&data);
        }
    }
}
