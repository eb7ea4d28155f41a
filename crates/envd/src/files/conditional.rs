//! Conditional and range requests, decided without touching a file.
//!
//! Files have a modification time and no entity tag. So `If-None-Match` and `If-Match` can hold
//! only by `*`, and `If-Range` only by a date.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, header};

/// More ranges than this in one request are no honest request.
const MAX_RANGES: usize = 64;

/// The first moment that a date in a header cannot say: the year 10000, in Unix seconds.
const END_OF_DATES: i64 = 253_402_300_800;

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 with all of the file.
    Whole,
    /// 206 with these ranges, at least one, none empty.
    Ranges(Vec<Range<u64>>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Whether the request can be answered only with the file as it is, since its ranges and validators
/// speak about that.
pub fn is_conditional(headers: &HeaderMap) -> bool {
    [header::RANGE, header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_NONE_MATCH]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// A file's modification time in Unix seconds as a time that a header can carry. The epoch itself
/// stands for "unknown".
pub fn header_time(seconds: i64) -> Option<SystemTime> {
    let seconds = u64::try_from(seconds).ok().filter(|_| seconds < END_OF_DATES)?;
    (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Decides about a request for a file of `size` bytes, last modified at `modified` (full seconds).
pub fn evaluate(headers: &HeaderMap, modified: Option<SystemTime>, size: u64) -> Answer {
    let date = |name| text(headers, &name).and_then(|value| httpdate::parse_http_date(value).ok());

    if let Some(value) = text(headers, &header::IF_MATCH) {
        if !lists_any(value) {
            return Answer::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (date(header::IF_UNMODIFIED_SINCE), modified)
        && modified > since
    {
        return Answer::PreconditionFailed;
    }
    if let Some(value) = text(headers, &header::IF_NONE_MATCH) {
        if lists_any(value) {
            return Answer::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(header::IF_MODIFIED_SINCE), modified)
        && modified <= since
    {
        return Answer::NotModified;
    }
    match text(headers, &header::RANGE) {
        Some(range) if may_be_partial(headers, modified) => ranges(range, size),
        _ => Answer::Whole,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn lists_any(tags: &str) -> bool {
    tags.split(',').any(|tag| tag.trim() == "*")
}

/// Whether `If-Range`, if there, says that the client's part is of this very file.
fn may_be_partial(headers: &HeaderMap, modified: Option<SystemTime>) -> bool {
    if !headers.contains_key(header::IF_RANGE) {
        return true;
    }
    let date =
        text(headers, &header::IF_RANGE).and_then(|value| httpdate::parse_http_date(value).ok());
    date.is_some() && date == modified
}

/// Reads a `Range` header.
fn ranges(value: &str, size: u64) -> Answer {
    // Some clients put a range on every request, to limit its size: nothing is less than that.
    if size == 0 {
        return Answer::Whole;
    }
    let Some(list) = value.strip_prefix("bytes=") else { return Answer::Unsatisfiable };
    let mut ranges = Vec::new();
    for spec in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        match range(spec, size) {
            Some(range) if !range.is_empty() => ranges.push(range),
            Some(_) => {}
            None => return Answer::Unsatisfiable,
        }
    }
    if ranges.is_empty() {
        return Answer::Unsatisfiable;
    }
    // Together more than the file: a mistake, or an attempt to make the server work.
    let total = ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add);
    if total > size || ranges.len() > MAX_RANGES {
        return Answer::Whole;
    }
    Answer::Ranges(ranges)
}

/// One range, cut to the file; empty when it lies beyond, `None` when it is none.
fn range(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // What no 64 bits hold lies beyond every file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.trim().is_empty() {
        return Some(size.saturating_sub(number(last)?)..size);
    }
    let first = number(first)?;
    let last = if last.trim().is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(first.min(size)..last.saturating_add(1).min(size))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn answer(pairs: &[(HeaderName, &str)], size: u64) -> Answer {
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        evaluate(&headers, httpdate::parse_http_date(MODIFIED).ok(), size)
    }

    fn ranged(value: &str, size: u64) -> Answer {
        answer(&[(header::RANGE, value)], size)
    }

    // Rules: GET-11, GET-12
    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn ranges_are_cut_to_the_file() {
        for (value, expected) in [
            ("bytes=0-0", vec![0..1]),
            ("bytes=2-", vec![2..10]),
            ("bytes=-3", vec![7..10]),
            ("bytes=-30", vec![0..10]),
            ("bytes=5-99999999999999999999999", vec![5..10]),
            ("bytes=0-1, 4-5,,-1", vec![0..2, 4..6, 9..10]),
            ("bytes=0-1,50-60", vec![0..2]),
        ] {
            assert_eq!(ranged(value, 10), Answer::Ranges(expected), "{value}");
        }
    }

    // Rules: GET-13
    #[test]
    fn ranges_that_make_no_sense_are_unsatisfiable() {
        for value in [
            "bytes=10-",
            "bytes=3-2",
            "bytes=a-b",
            "bytes=-",
            "bytes=",
            "lines=1-2",
            "bytes=-0",
            "bytes=+1-2",
        ] {
            assert_eq!(ranged(value, 10), Answer::Unsatisfiable, "{value}");
        }
    }

    #[test]
    fn more_than_the_file_is_the_whole_file() {
        assert_eq!(ranged("bytes=0-9,0-9", 10), Answer::Whole);
        assert_eq!(ranged("bytes=0-1023", 0), Answer::Whole);
        let many = format!("bytes={}", vec!["0-0"; 65].join(","));
        assert_eq!(ranged(&many, 1000), Answer::Whole);
    }

    // Rules: GET-14
    #[test]
    fn dates_decide() {
        use header::{IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE};
        assert_eq!(answer(&[(IF_MODIFIED_SINCE, MODIFIED)], 10), Answer::NotModified);
        assert_eq!(answer(&[(IF_MODIFIED_SINCE, AFTER)], 10), Answer::NotModified);
        assert_eq!(answer(&[(IF_MODIFIED_SINCE, BEFORE)], 10), Answer::Whole);
        assert_eq!(answer(&[(IF_MODIFIED_SINCE, "yesterday")], 10), Answer::Whole);
        assert_eq!(answer(&[(IF_UNMODIFIED_SINCE, BEFORE)], 10), Answer::PreconditionFailed);
        assert_eq!(answer(&[(IF_UNMODIFIED_SINCE, MODIFIED)], 10), Answer::Whole);
    }

    // Rules: GET-14
    #[test]
    fn tags_hold_only_by_a_star() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH};
        assert_eq!(answer(&[(IF_MATCH, "\"tag\"")], 10), Answer::PreconditionFailed);
        assert_eq!(answer(&[(IF_MATCH, "*")], 10), Answer::Whole);
        assert_eq!(answer(&[(IF_NONE_MATCH, "*")], 10), Answer::NotModified);
        let both = [(IF_NONE_MATCH, "\"tag\""), (IF_MODIFIED_SINCE, MODIFIED)];
        assert_eq!(answer(&both, 10), Answer::Whole, "the tag makes the date void");
    }

    // Rules: GET-14
    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn a_range_of_another_file_is_the_whole_file() {
        let with =
            |validator| answer(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, validator)], 10);
        assert_eq!(with(MODIFIED), Answer::Ranges(vec![0..2]));
        assert_eq!(with(BEFORE), Answer::Whole);
        assert_eq!(with("\"tag\""), Answer::Whole);
    }

    #[test]
    fn times_out_of_reach_are_left_out() {
        assert_eq!(header_time(0), None);
        assert_eq!(header_time(-1), None);
        assert_eq!(header_time(i64::MAX), None);
        let last = header_time(END_OF_DATES - 1).unwrap();
        assert_eq!(httpdate::fmt_http_date(last), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn ranges_stay_within_the_file(value in "bytes=[0-9, -]{0,24}", size in 0_u64..2000) {
            if let Answer::Ranges(ranges) = ranged(&value, size) {
                prop_assert!(!ranges.is_empty());
                prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size));
            }
        }
    }
}
