//! Page cursors (control-plane contract, section 4): base64url of `<time>__<id>`, with `__asc`
//! behind it for ascending listings.
//!
//! A cursor names the last item of a page by its sort key, so a page is right even when items came
//! or went between two requests.

use std::cmp::Ordering;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::Timestamp;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Direction of a listing by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// Oldest first; the exact reverse of the other.
    Ascending,
    /// Newest first, and by ascending id where times are equal.
    #[default]
    Descending,
}

/// The sort key of an item: its time in microseconds, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    micros: i64,
    id: String,
}

impl Key {
    /// The key of an item of this time and id.
    pub(crate) fn new(time: Timestamp, id: &str) -> Self {
        Self { micros: time.as_microsecond(), id: id.to_owned() }
    }

    /// How two items stand in a listing of `order`.
    pub(crate) fn compare(&self, other: &Self, order: Order) -> Ordering {
        let descending = other.micros.cmp(&self.micros).then_with(|| self.id.cmp(&other.id));
        match order {
            Order::Descending => descending,
            Order::Ascending => descending.reverse(),
        }
    }

    /// The cursor behind this item.
    pub(crate) fn encode(&self, order: Order) -> String {
        // A key made by `new` is within the range of a timestamp, so the default is never taken.
        let time = Timestamp::from_microsecond(self.micros).unwrap_or_default();
        let suffix = match order {
            Order::Ascending => "__asc",
            Order::Descending => "",
        };
        BASE64.encode(format!("{time}__{}{suffix}", self.id))
    }

    /// Reads a cursor of a listing of `order`; none when it is malformed or of the other order.
    pub(crate) fn decode(cursor: &str, order: Order) -> Option<Self> {
        let text = String::from_utf8(BASE64.decode(cursor).ok()?).ok()?;
        let (rest, found) = match text.strip_suffix("__asc") {
            Some(rest) => (rest, Order::Ascending),
            None => (text.as_str(), Order::Descending),
        };
        let (time, id) = rest.split_once("__")?;
        if found != order || id.is_empty() {
            return None;
        }
        Some(Self::new(time.parse().ok()?, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(time: &str, id: &str) -> Key {
        Key::new(time.parse().unwrap(), id)
    }

    #[test]
    fn cursors_survive_the_round_trip_in_their_own_order_only() {
        let key = key("2026-01-02T03:04:05.123456Z", "iabc");
        for (order, other) in
            [(Order::Ascending, Order::Descending), (Order::Descending, Order::Ascending)]
        {
            let cursor = key.encode(order);
            assert_eq!(Key::decode(&cursor, order).as_ref(), Some(&key));
            assert_eq!(Key::decode(cursor.trim_end_matches('='), order).as_ref(), Some(&key));
            assert_eq!(Key::decode(&cursor, other), None);
        }
    }

    #[test]
    fn nonsense_is_no_cursor() {
        for bad in ["", "x", "é", "====", &BASE64.encode("now__iabc"), &BASE64.encode("__"), "IA"]
        {
            assert_eq!(Key::decode(bad, Order::Descending), None, "{bad:?}");
        }
    }

    #[test]
    fn newest_first_and_ids_break_ties() {
        let mut keys = [
            key("2026-01-01T00:00:00Z", "ia"),
            key("2026-01-02T00:00:00Z", "ib"),
            key("2026-01-02T00:00:00.0000001Z", "ia"),
        ];
        keys.sort_by(|a, b| a.compare(b, Order::Descending));
        let ids = |keys: &[Key]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&keys), ["ia", "ib", "ia"]);
        assert!(keys[0].micros == keys[1].micros && keys[2].micros < keys[1].micros);
        let descending = keys.clone();
        keys.sort_by(|a, b| a.compare(b, Order::Ascending));
        keys.reverse();
        assert_eq!(keys, descending);
    }
}
